// Moments that are to fall: slower averages than a code's step, and elements whose gradients have
// stopped. Codes rounded to nearest stand still there (docs/numerics.md).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/cpu/update_loops.h"
#include "tests/kernels/numerics/update_state.h"

namespace flashshard {
namespace {

TEST(Forgetting, TheVarianceFallsAsFastAsInFP64) {
  // A long average: no step moves a root by as much as half a code. Gradients fall to a tenth half
  // way.
  constexpr size_t kCount = 1024;
  constexpr uint64_t kSteps = 6000;
  const RuleCase rule{"AdamW", Rule::kAdamW, {.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8}};
  UpdateState state(rule, {}, kCount);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> noise(-1.0f, 1.0f);
  std::vector<double> variance(kCount), deviation(kCount);
  for (double& d : deviation) d = std::exp(0.5 * noise(random));
  const auto mean_ratio = [&] {
    double sum = 0;
    for (size_t i = 0; i < kCount; ++i) sum += state.root(i) / std::sqrt(variance[i]);
    return sum / kCount;
  };
  for (uint64_t t = 1; t <= kSteps; ++t) {
    for (size_t i = 0; i < kCount; ++i) {
      const double size = deviation[i] * (t > kSteps / 2 ? 0.1 : 1.0);
      state.set_gradient(i, static_cast<float>(size) * noise(random));
      const double g = state.gradient(i);
      variance[i] = variance[i] * 0.999 + g * g * 0.001;
    }
    const UpdateFactors factors =
        make_update_factors(rule.rule, rule.hyper, 1e-3, 1.0, Rounding::kStochastic, t);
    cpu::update_loops().update(state.tensor(), factors, 0, kCount);
    if (t == kSteps / 2) {
      EXPECT_NEAR(mean_ratio(), 1.0, 0.02);
    }
  }
  EXPECT_NEAR(mean_ratio(), 1.0, 0.02);
}

/// Elements without gradients, one of each group; the others have some at every step.
bool is_idle(size_t i) { return i % kGroup == 5; }

/// 60 steps with gradients for all, then `steps` without for the idle ones.
template <class AfterStep>
void run_with_idle_elements(const RuleCase& rule, UpdateState& state, uint64_t steps,
                            double learning_rate, const AfterStep& after_step) {
  std::mt19937_64 random(6);
  std::normal_distribution<float> normal;
  for (uint64_t t = 1; t <= 60 + steps; ++t) {
    for (size_t i = 0; i < state.size(); ++i)
      state.set_gradient(i, t > 60 && is_idle(i) ? 0.0f : normal(random));
    UpdateTensor tensor = state.tensor();
    tensor.weight_decay_factor = 1;
    tensor.coupled_decay = 0;
    const UpdateFactors factors =
        make_update_factors(rule.rule, rule.hyper, learning_rate, 1.0, Rounding::kStochastic, t);
    ASSERT_EQ(cpu::update_loops().update(tensor, factors, 0, tensor.count), 0);
    after_step(t);
  }
}

class IdleElements : public testing::TestWithParam<RuleCase> {};
std::vector<RuleCase> rules_with_momentum() {
  std::vector<RuleCase> rules = rule_cases();
  std::erase_if(rules, [](const RuleCase& c) { return !has_momentum(c.rule, c.hyper.beta1); });
  return rules;
}
INSTANTIATE_TEST_SUITE_P(Rules, IdleElements, testing::ValuesIn(rules_with_momentum()),
                         [](const auto& instance) { return instance.param.name; });

TEST_P(IdleElements, LoseTheirMomentumInV2WhateverTheWeightsFormat) {
  for (WeightFormat weight : {WeightFormat::kSplit24, WeightFormat::kBF16, WeightFormat::kFP32}) {
    UpdateState state(GetParam(), {.weight = weight, .gradient = DType::kFP32}, 1024);
    int largest_at_stop = 0;
    const auto largest = [&] {
      int most = 0;
      for (size_t i = 0; i < state.size(); ++i)
        if (is_idle(i)) most = std::max(most, std::abs(int{state.momentum8[i]}));
      return most;
    };
    // 0.99^2000 of 127 codes is 2e-7: what a code of 1 is worth in probability.
    run_with_idle_elements(GetParam(), state, 2000, 1e-3, [&](uint64_t t) {
      if (t == 60) largest_at_stop = largest();
    });
    EXPECT_GT(largest_at_stop, 30);
    EXPECT_EQ(largest(), 0);
  }
}

TEST(Forgetting, AnIdleElementGoesAsFarAsInFP64AndInV1Further) {
  const RuleCase rule{"AdamW", Rule::kAdamW, {.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8}};
  constexpr double kRate = 1e-3;
  // Root mean square of the way of idle elements beside where fp64 has them, in learning rates,
  // from the 30th step on: what is left of their momentum by then is a twentieth.
  const auto error = [&](const UpdateFormat& format) {
    UpdateState state(rule, format, 4096);
    for (size_t i = 0; i < state.size(); ++i) state.set_weight(i, 1.0f);
    std::vector<double> m(state.size()), v(state.size()), start(state.size()), way(state.size());
    run_with_idle_elements(rule, state, 240, kRate, [&](uint64_t t) {
      for (size_t i = 5; i < state.size(); i += kGroup) {
        const double g = state.gradient(i);
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.95 * v[i] + 0.05 * g * g;
        if (t == 90) start[i] = state.weight(i);
        if (t > 90) way[i] -= m[i] / std::sqrt(v[i]);
      }
    });
    double squares = 0;
    for (size_t i = 5; i < state.size(); i += kGroup) {
      const double off = (state.weight(i) - start[i]) / kRate - way[i];
      squares += off * off;
    }
    return std::sqrt(squares / static_cast<double>(state.groups()));
  };
  EXPECT_LT(error({}), 0.3);
  EXPECT_GT(error({WeightFormat::kCorrected24, StateFormat::kFlashOptim, DType::kFP32,
                   Rounding::kNearest}),
            3.0);
}

}  // namespace
}  // namespace flashshard
