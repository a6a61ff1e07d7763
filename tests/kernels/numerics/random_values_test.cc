// Counter-based random numbers: Philox4x32-10 and what is made of it.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kernels/numerics/philox.h"
#include "kernels/numerics/random_values.h"

namespace flashshard::numerics {
namespace {

using Words = std::array<uint32_t, 4>;

TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomValues, AnElementDependsOnItsIndexAloneNotOnTheRange) {
  const RandomKey key{.seed = 0x123456789abcdef0u, .tensor = 7};
  std::vector<float> whole(103);
  fill_normal(whole, key, (uint64_t{1} << 34) - 50, 0.02f);
  for (size_t first : {0u, 1u, 2u, 3u, 50u, 101u}) {
    std::vector<float> part(whole.size() - first);
    fill_normal(part, key, (uint64_t{1} << 34) - 50 + first, 0.02f);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + static_cast<long>(first)));
  }
  EXPECT_EQ(whole[5], 0.02f * normal_from_bits(random_bits(key, (uint64_t{1} << 34) - 45)));
}

TEST(RandomValues, SeedsAndTensorsGiveOtherNumbers) {
  const uint32_t word = random_bits({1, 2}, 3);
  EXPECT_EQ(word, philox4x32({0, 0, 2, 0}, {1, 0})[3]);
  EXPECT_NE(word, random_bits({2, 2}, 3));
  EXPECT_NE(word, random_bits({1, 3}, 3));
  EXPECT_NE(word, random_bits({1 + (uint64_t{1} << 32), 2}, 3));
  EXPECT_NE(word, random_bits({1, 2 + (uint64_t{1} << 32)}, 3));
}

TEST(RandomValues, UniformFillsItsIntervalEvenly) {
  std::vector<float> values(100000);
  fill_uniform(values, {.seed = 1, .tensor = 1}, 0, -2.0f, 3.0f);
  std::array<int, 10> counts = {};
  double mean = 0;
  for (float v : values) {
    ASSERT_GE(v, -2.0f);
    ASSERT_LT(v, 3.0f);
    ++counts[static_cast<size_t>((v + 2.0f) * 2.0f)];
    mean += v / 100000.0;
  }
  EXPECT_NEAR(mean, 0.5, 0.02);
  for (int count : counts) EXPECT_NEAR(count, 10000, 500);
}

TEST(RandomValues, NormalInvertsTheDistributionFunction) {
  // Phi(x) by the complementary error function, at words over centre, middle and both tails.
  for (uint64_t word = 0; word <= 0xffffffffu;
       word += word < 1000 || word > 0xfffff000u ? 1 : 99991) {
    const float x = normal_from_bits(static_cast<uint32_t>(word));
    const double probability = (static_cast<double>(word) + 0.5) * 0x1p-32;
    const double phi = 0.5 * std::erfc(-double{x} / std::sqrt(2.0));
    const double density = std::exp(-0.5 * x * x) / std::sqrt(2.0 * 3.14159265358979323846);
    ASSERT_NEAR(phi, probability, density * std::fabs(x) * 1e-7 + 1e-15) << word;
    ASSERT_EQ(normal_from_bits(static_cast<uint32_t>(0xffffffffu - word)), -x) << "symmetric";
  }
  EXPECT_LT(std::fabs(normal_from_bits(0)), 6.34f);
}

TEST(RandomValues, NormalHasItsMoments) {
  std::vector<float> values(200000);
  fill_normal(values, {.seed = 9, .tensor = 4}, 0, 0.5f);
  double mean = 0, square = 0, fourth = 0;
  for (double v : values) {
    mean += v;
    square += v * v;
    fourth += v * v * v * v;
  }
  const auto n = static_cast<double>(values.size());
  EXPECT_NEAR(mean / n, 0.0, 0.005);
  EXPECT_NEAR(square / n, 0.25, 0.003);
  EXPECT_NEAR(fourth / n, 3 * 0.0625, 0.006);
}

}  // namespace
}  // namespace flashshard::numerics
