// How long a step of AdamW can become where the elements of a group differ in size: a variance code
// of 0 beside a momentum divides by epsilon.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/cpu/update_loops.h"
#include "tests/kernels/numerics/update_state.h"

namespace flashshard {
namespace {

constexpr double kLearningRate = 1e-3;

struct Steps {
  double longest = 0;    // in learning rates
  int64_t vanished = 0;  // variance codes of 0 beside a momentum that is not
};

/// 150 steps with gradients whose sizes are exp(N(0, spread)): so much ln sqrt(v) spreads in a
/// group. In a long average (beta2 0.999) a variance that has vanished stays so.
Steps take_steps(const UpdateFormat& format, double spread) {
  constexpr size_t kCount = 4096;
  const RuleCase rule{"AdamW", Rule::kAdamW, {.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8}};
  UpdateState state(rule, format, kCount);
  std::mt19937_64 random(4);
  std::normal_distribution<double> normal;
  std::vector<double> size(kCount), before(kCount, 1.0);
  for (size_t i = 0; i < kCount; ++i) {
    size[i] = std::exp(spread * normal(random));
    state.set_weight(i, 1.0f);
  }
  Steps steps;
  for (uint64_t t = 1; t <= 150; ++t) {
    for (size_t i = 0; i < kCount; ++i)
      state.set_gradient(i, static_cast<float>(size[i] * normal(random)));
    UpdateTensor tensor = state.tensor();
    tensor.weight_decay_factor = 1;
    const UpdateFactors factors =
        make_update_factors(rule.rule, rule.hyper, kLearningRate, 1.0, format.rounding, t);
    EXPECT_EQ(cpu::update_loops().update(tensor, factors, 0, tensor.count), 0);
    for (size_t i = 0; i < kCount; ++i) {
      const double after = state.weight(i);
      steps.longest = std::max(steps.longest, std::fabs(after - before[i]) / kLearningRate);
      steps.vanished += state.variance8[i] == 0 && state.momentum8[i] != 0 ? 1 : 0;
      before[i] = after;
    }
  }
  return steps;
}

constexpr UpdateFormat kV1{WeightFormat::kCorrected24, StateFormat::kFlashOptim, DType::kFP32,
                           Rounding::kNearest};

class LongestStep : public testing::TestWithParam<double> {};
INSTANTIATE_TEST_SUITE_P(Spreads, LongestStep, testing::Values(2.0, 3.0));

TEST_P(LongestStep, IsBelowTenLearningRatesInV2WhereItIsOverAThousandInV1) {
  for (Rounding rounding : {Rounding::kStochastic, Rounding::kNearest}) {
    const Steps v2 = take_steps(
        {WeightFormat::kSplit24, StateFormat::kCompanded, DType::kFP32, rounding}, GetParam());
    EXPECT_GT(v2.longest, 1.0);
    EXPECT_LT(v2.longest, 10.0);
    EXPECT_EQ(v2.vanished, 0);
  }
  const Steps v1 = take_steps(kV1, GetParam());
  EXPECT_GT(v1.longest, 1000.0);
  EXPECT_GT(v1.vanished, 0);
}

}  // namespace
}  // namespace flashshard
