// Initial weights: their distribution, and that an element depends on (seed, tensor, element)
// alone.
#include "runtime/model/initialize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace flashshard {
namespace {

std::vector<float> drawn(uint64_t seed, int tensor, int64_t first, size_t count,
                         Initialization initialization = {0, 1}) {
  std::vector<float> values(count);
  initialize(initialization, seed, tensor, first, values);
  return values;
}

struct Moments {
  double mean = 0, deviation = 0, kurtosis = 0;
};
Moments moments_of(const std::vector<float>& values) {
  const auto n = static_cast<double>(values.size());
  Moments m;
  for (const float v : values) m.mean += v / n;
  double fourth = 0;
  for (const float v : values) {
    const double d = v - m.mean;
    m.deviation += d * d / n;
    fourth += d * d * d * d / n;
  }
  m.kurtosis = fourth / (m.deviation * m.deviation);
  m.deviation = std::sqrt(m.deviation);
  return m;
}

TEST(Initialize, DrawsANormalDistributionOfTheGivenMeanAndDeviation) {
  const Moments m = moments_of(drawn(1, 2, 0, 1 << 20, {0.5, 0.02}));
  EXPECT_NEAR(m.mean, 0.5, 0.02 * 5e-3);
  EXPECT_NEAR(m.deviation, 0.02, 0.02 * 5e-3);
  EXPECT_NEAR(m.kurtosis, 3.0, 0.03);
}

TEST(Initialize, FollowsTheNormalDistributionFunction) {
  std::vector<float> values = drawn(3, 0, 0, 100000);
  std::sort(values.begin(), values.end());
  double largest = 0;  // Kolmogorov-Smirnov distance
  for (size_t i = 0; i < values.size(); ++i) {
    const double expected = 0.5 * std::erfc(-double{values[i]} / std::sqrt(2.0));
    const double observed = (static_cast<double>(i) + 0.5) / static_cast<double>(values.size());
    largest = std::max(largest, std::abs(observed - expected));
  }
  EXPECT_LT(largest, 1.95 / std::sqrt(100000.0));  // chance of a larger one: 0.1 %
}

TEST(Initialize, GivesTheSameElementsHoweverARangeIsCut) {
  const std::vector<float> whole = drawn(7, 4, 0, 1000);
  for (const size_t cut : {1u, 2u, 3u, 4u, 5u, 63u, 998u, 999u}) {
    std::vector<float> pieces = drawn(7, 4, 0, cut);
    const std::vector<float> rest = drawn(7, 4, static_cast<int64_t>(cut), 1000 - cut);
    pieces.insert(pieces.end(), rest.begin(), rest.end());
    EXPECT_EQ(pieces, whole) << "cut at " << cut;
  }
}

TEST(Initialize, DiffersBySeedTensorAndElementBeyond32Bits) {
  const auto base = drawn(1, 1, 0, 64);
  EXPECT_NE(drawn(2, 1, 0, 64), base);
  EXPECT_NE(drawn(uint64_t{1} + (uint64_t{1} << 32), 1, 0, 64), base);
  EXPECT_NE(drawn(1, 2, 0, 64), base);
  EXPECT_NE(drawn(1, 1, int64_t{1} << 34, 64), base);
}

TEST(Initialize, GivesAConstantWithoutDeviation) {
  EXPECT_THAT(drawn(1, 1, 5, 33, {1, 0}), ::testing::Each(1.0f));
}

// Made with a Philox4x32-10 in Python and statistics.NormalDist().inv_cdf((word + 0.5) / 2^32). A
// change here would change the start of every run.
TEST(Initialize, NeverChangesItsValues) {
  const std::vector<float> values = drawn(42, 3, 10, 3);
  EXPECT_NEAR(values[0], 0.020772162324867307, 1e-8);
  EXPECT_NEAR(values[1], 0.30420817229369124, 1e-7);
  EXPECT_NEAR(values[2], -0.7113102222248937, 1e-7);
  EXPECT_NEAR(drawn(uint64_t{1} << 33, 7, (int64_t{1} << 35) + 1, 1)[0], 1.2327452065246935, 1e-6);
}

}  // namespace
}  // namespace flashshard
