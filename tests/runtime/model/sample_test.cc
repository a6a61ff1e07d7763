// Choosing a token: greedy, tempered, reproducible.
#include "runtime/model/sample.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/error.h"

namespace flashshard {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

ExitCode refusal(std::vector<float> logits, SamplingOptions options) {
  try {
    sample_token(logits, options, 0);
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::kDone;
}

TEST(SampleToken, TakesTheHighestScoreAtTemperatureZero) {
  EXPECT_EQ(sample_token(std::vector<float>{-1, 3, 2, 3}, {.temperature = 0}, 5), 1);
  EXPECT_EQ(sample_token(std::vector<float>{-kInfinity, -5}, {.temperature = 0}, 5), 1);
}

TEST(SampleToken, DrawsWithTheProbabilitiesOfTheTemperedSoftmax) {
  const std::vector<float> logits{0.0f, 1.0f, 2.0f, -kInfinity, 0.5f};
  for (const double temperature : {0.5, 1.0, 2.0}) {
    std::vector<double> expected;
    double sum = 0;
    for (const float logit : logits) sum += std::exp(double{logit} / temperature);
    for (const float logit : logits)
      expected.push_back(std::exp(double{logit} / temperature) / sum);

    const int draws = 40000;
    std::vector<int> counts(logits.size());
    for (int i = 0; i < draws; ++i) {
      const int32_t token = sample_token(logits, {temperature, 11}, static_cast<uint64_t>(i));
      ++counts[static_cast<size_t>(token)];
    }
    for (size_t t = 0; t < logits.size(); ++t) {
      const double deviation = std::sqrt(draws * expected[t] * (1 - expected[t]));
      EXPECT_NEAR(counts[t], draws * expected[t], 4.5 * deviation + 1e-9) << "token " << t;
    }
  }
}

TEST(SampleToken, IsAFunctionOfSeedAndPosition) {
  const std::vector<float> logits(1000, 0.0f);
  int same_seed = 0, same_position = 0;
  for (uint64_t position = 0; position < 50; ++position) {
    const int32_t token = sample_token(logits, {1.0, 3}, position);
    EXPECT_EQ(sample_token(logits, {1.0, 3}, position), token);
    same_seed += sample_token(logits, {1.0, 3}, position + 50) == token;
    same_position += sample_token(logits, {1.0, 4}, position) == token;
  }
  EXPECT_LT(same_seed, 5);
  EXPECT_LT(same_position, 5);
}

TEST(SampleToken, SurvivesScoresThatOverflowAnExponential) {
  EXPECT_EQ(sample_token(std::vector<float>{1e30f, 0.0f}, {0.01, 1}, 0), 0);
  EXPECT_EQ(sample_token(std::vector<float>{-1e30f, -3e38f}, {1e-300, 1}, 0), 0);
}

TEST(SampleToken, RefusesScoresAndTemperaturesThatAreNoNumbers) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {0.0, 1.0}) {
    EXPECT_EQ(refusal({0, nan}, {temperature, 1}), ExitCode::kNonFinite);
    EXPECT_EQ(refusal({0, kInfinity}, {temperature, 1}), ExitCode::kNonFinite);
    EXPECT_EQ(refusal({-kInfinity, -kInfinity}, {temperature, 1}), ExitCode::kNonFinite);
  }
  EXPECT_EQ(refusal({0, 1}, {-1.0, 1}), ExitCode::kUsage);
  EXPECT_EQ(refusal({0, 1}, {double{nan}, 1}), ExitCode::kUsage);
  EXPECT_EQ(refusal({0, 1}, {double{kInfinity}, 1}), ExitCode::kUsage);
  EXPECT_EQ(refusal({}, {1.0, 1}), ExitCode::kInternal);
}

}  // namespace
}  // namespace flashshard
