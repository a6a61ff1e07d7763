// The noise of stochastic rounding: its definition, its independence of sharding, its lack of bias.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <tuple>

#include "kernels/cpu/update_loops.h"
#include "kernels/numerics/rounding.h"
#include "tests/kernels/numerics/scalar_formulas.h"
#include "tests/kernels/numerics/update_state.h"

namespace flashshard {
namespace {

TEST(RoundingKey, SplitmixGivesTheReferenceSequence) {
  // State 0 advanced by the golden gamma: the published generator's first three outputs.
  EXPECT_EQ(numerics::splitmix64(0), 0xe220a8397b1dcdafu);
  EXPECT_EQ(numerics::splitmix64(0x9e3779b97f4a7c15u), 0x6e789e6aa1b965f4u);
  EXPECT_EQ(numerics::splitmix64(2 * 0x9e3779b97f4a7c15u), 0x06c45d188009454fu);
}

TEST(RoundingKey, ChangesWithEveryIngredient) {
  const uint32_t key = numerics::rounding_key({1, 2}, 3, 4);
  EXPECT_NE(key, numerics::rounding_key({2, 2}, 3, 4));
  EXPECT_NE(key, numerics::rounding_key({1, 3}, 3, 4));
  EXPECT_NE(key, numerics::rounding_key({1, 2}, 4, 4));
  EXPECT_NE(key, numerics::rounding_key({1, 2}, 3, 5));
}

UpdateState equal_weights(WeightFormat format, float weight, int64_t count, int64_t first_element) {
  UpdateState state(rule_cases()[0], {.weight = format}, count, first_element);
  for (size_t i = 0; i < state.size(); ++i) state.set_weight(i, weight);
  return state;
}

/// With zero gradients and states only the decay factor moves a weight: x' = x * factor.
UpdateTensor decaying(UpdateState& state, float factor) {
  UpdateTensor tensor = state.tensor();
  tensor.weight_decay_factor = factor;
  return tensor;
}

UpdateFactors factors_of(Rounding rounding) {
  return make_update_factors(Rule::kAdamW, {}, 1e-3, 1.0, rounding, 5);
}

class FirstElement : public testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(KeySpans, FirstElement,
                         testing::Values(0, 320, (int64_t{1} << 33) - 96, (int64_t{1} << 34) - 64,
                                         (int64_t{1} << 40) - 32));

TEST_P(FirstElement, TheNoiseByteOfAnElementIsAsDocumented) {
  for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
    UpdateState state = equal_weights(WeightFormat::kSplit24, 1.0f, 700, GetParam());
    const float factor = std::bit_cast<float>(0x3f7ffec0u);  // low byte 0xc0
    const UpdateTensor tensor = decaying(state, factor);
    loops->update(tensor, factors_of(Rounding::kStochastic), 0, tensor.count);
    for (uint64_t i = 0; i < 700; ++i) {
      const uint64_t e = static_cast<uint64_t>(GetParam()) + i;
      const uint32_t key = numerics::rounding_key(tensor.key, 5, e >> 34);
      const uint32_t word = formulas::mix32<formulas::Scalar>(static_cast<uint32_t>(e / 4) ^ key);
      const uint32_t noise = (word >> (8 * (e % 4))) & 0xff;
      const uint32_t expected = (0x3f7ffec0u + noise) & ~0xffu;
      ASSERT_EQ(std::bit_cast<uint32_t>(state.weight(i)), expected) << loops->name << " " << i;
    }
  }
}

TEST_P(FirstElement, TheNoiseHalfWordOfAPlainBF16WeightIsAsDocumented) {
  for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
    UpdateState state = equal_weights(WeightFormat::kBF16, 1.0f, 700, GetParam());
    const UpdateTensor tensor = decaying(state, std::bit_cast<float>(0x3f7f6000u));
    loops->update(tensor, factors_of(Rounding::kStochastic), 0, tensor.count);
    for (uint64_t i = 0; i < 700; ++i) {
      const uint64_t e = static_cast<uint64_t>(GetParam()) + i;
      const uint32_t key = numerics::rounding_key(tensor.key, 5, e >> 33);
      const uint32_t word = formulas::mix32<formulas::Scalar>(static_cast<uint32_t>(e / 2) ^ key);
      const uint32_t noise = (word >> (16 * (e % 2))) & 0xffff;
      ASSERT_EQ(state.weight16[i], (0x3f7f6000u + noise) >> 16) << loops->name << " " << i;
    }
  }
}

TEST_P(FirstElement, AVarianceCodeIsRoundedWithTheElementsByteWhateverTheWeight) {
  for (WeightFormat format :
       {WeightFormat::kSplit24, WeightFormat::kSplit32, WeightFormat::kBF16}) {
    for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
      UpdateState state = equal_weights(format, 1.0f, 700, GetParam());
      for (size_t i = 0; i < 700; ++i) {
        state.variance8[i] = i % kGroup == 0 ? 255 : static_cast<uint8_t>(3 + i % 200);
        state.set_gradient(i, 0.0f);
      }
      for (size_t g = 0; g < state.groups(); ++g) state.variance_scale[g] = 0x7f00;
      std::vector<float> roots;
      const UpdateFactors factors = factors_of(Rounding::kStochastic);
      for (size_t i = 0; i < 700; ++i) {
        const float z = formulas::Companding<formulas::Scalar>::root(
            state.variance8[i],
            formulas::Companding<formulas::Scalar>::root_step(state.scale(0x7f00)));
        roots.push_back(std::sqrt((z * z) * factors.beta2));
      }
      const UpdateTensor tensor = state.tensor();
      loops->update(tensor, factors, 0, tensor.count);
      for (uint64_t i = 0; i < 700; ++i) {
        const uint64_t e = static_cast<uint64_t>(GetParam()) + i;
        const uint32_t key = numerics::rounding_key(tensor.key, 5, e >> 34);
        const uint32_t word = formulas::mix32<formulas::Scalar>(static_cast<uint32_t>(e / 4) ^ key);
        const uint32_t noise = (word >> (8 * (e % 4))) & 0xff;
        const float scale = state.scale(state.variance_scale[i / kGroup]);
        const double exact = double{roots[i]} * (65280.0f / scale);
        const auto fixed = static_cast<uint32_t>(std::nearbyint(exact));
        ASSERT_EQ(state.variance8[i], (fixed + noise) >> 8) << loops->name << " " << i;
      }
    }
  }
}

TEST_P(FirstElement, AMomentumCodeIsRoundedWithTheElementsByteWhateverTheWeightAndRule) {
  const RuleCase rules[] = {
      {"AdamW", Rule::kAdamW, {.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8}},
      {"Lion", Rule::kLion, {.beta1 = 0.95, .beta2 = 0.9}}};  // the momentum falls to 0.9 in both
  for (WeightFormat format :
       {WeightFormat::kSplit24, WeightFormat::kSplit32, WeightFormat::kBF16}) {
    for (const RuleCase& rule : rules) {
      for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
        UpdateState state(rule, {format, StateFormat::kCompanded, DType::kFP32}, 700, GetParam());
        std::vector<float> momenta;
        for (size_t i = 0; i < 700; ++i) {
          state.set_weight(i, 1.0f);
          state.set_gradient(i, 0.0f);
          state.momentum8[i] =
              static_cast<int8_t>(i % kGroup == 0 ? 127 : static_cast<int>(i % 253) - 126);
          momenta.push_back(0.9f * formulas::Companding<formulas::Scalar>::momentum(
                                       state.momentum8[i], state.scale(0x7f00)));
        }
        for (size_t g = 0; g < state.groups(); ++g) state.momentum_scale[g] = 0x7f00;
        const UpdateFactors factors =
            make_update_factors(rule.rule, rule.hyper, 1e-3, 1.0, Rounding::kStochastic, 5);
        const UpdateTensor tensor = state.tensor();
        loops->update(tensor, factors, 0, tensor.count);
        for (uint64_t i = 0; i < 700; ++i) {
          const uint64_t e = static_cast<uint64_t>(GetParam()) + i;
          const uint32_t key = numerics::rounding_key(tensor.key, 5, e >> 34);
          const uint32_t word =
              formulas::mix32<formulas::Scalar>(static_cast<uint32_t>(e / 4) ^ key);
          const int noise = static_cast<int>((word >> (8 * (e % 4))) & 0xff);
          const float m = momenta[i], scale = state.scale(state.momentum_scale[i / kGroup]);
          const auto fixed =
              static_cast<int>(std::nearbyint((65024.0f * std::fabs(m)) / (scale + std::fabs(m))));
          const int code = (fixed + noise) / 256;
          ASSERT_EQ(state.momentum8[i], m < 0 ? -code : code)
              << rule.name << " " << loops->name << " " << i;
        }
      }
    }
  }
}

// ---- drift ----

constexpr double kBF16Ulp = 0x1p-7;  // of the weights below, which stay in [1, 2)
constexpr int kDriftSteps = 300;

/// What a step of so many ulp of bf16 takes from a weight that is rounded to fp32 alone.
double update_in_fp32(double step) {
  const auto update = static_cast<float>(step * kBF16Ulp);
  return 1.5 - static_cast<float>(1.5 - double{update});
}

/// How far `count` weights of 1.5 went in the mean by steps of SGD, over the updates after their
/// fp32 rounding, which is the same for every x of the format in [1, 2).
double drift_ratio(WeightFormat format, double step, Rounding rounding, int64_t count) {
  const RuleCase plain{"PlainSGD", Rule::kSGD, {.beta1 = 0}};
  UpdateState state(plain, {format, StateFormat::kFP32, DType::kFP32, rounding}, count);
  for (size_t i = 0; i < state.size(); ++i) {
    state.set_weight(i, 1.5f);
    state.set_gradient(i, 1.0f);
  }
  UpdateTensor tensor = state.tensor();
  tensor.coupled_decay = 0;
  for (uint64_t t = 1; t <= kDriftSteps; ++t) {
    const UpdateFactors factors =
        make_update_factors(plain.rule, plain.hyper, step * kBF16Ulp, 1.0, rounding, t);
    EXPECT_EQ(cpu::update_loops().update(tensor, factors, 0, tensor.count), 0);
  }
  double moved = 0;
  for (size_t i = 0; i < state.size(); ++i) {
    moved += 1.5 - state.weight(i);
    EXPECT_GE(state.weight(i), 1.0f);
  }
  return moved / static_cast<double>(count) / (kDriftSteps * update_in_fp32(step));
}

/// So many weights that the ratio's standard error is half a per cent. A step lands on one of the
/// two values of the format beside it: a draw, whose variance is that of a coin.
int64_t weights_to_look_at(WeightFormat format, double step) {
  const double steps_of_format =
      update_in_fp32(step) / kBF16Ulp * (format == WeightFormat::kSplit24 ? 256 : 1);
  const double odds = steps_of_format - std::floor(steps_of_format);
  const double error = 0.005 * steps_of_format;
  return static_cast<int64_t>(std::ceil(odds * (1 - odds) / (error * error) / kDriftSteps));
}

/// Format, and ulp of bf16 that a step is long. V1's master loses steps below 1/508.
class Drift : public testing::TestWithParam<std::tuple<WeightFormat, double>> {};
INSTANTIATE_TEST_SUITE_P(Steps, Drift,
                         testing::Combine(testing::Values(WeightFormat::kSplit24,
                                                          WeightFormat::kBF16),
                                          testing::Values(2e-4, 1e-3, 1.0 / 508, 0.1)));

TEST_P(Drift, OfStochasticRoundingIsThatOfTheUpdates) {
  const auto [format, step] = GetParam();
  const double ratio =
      drift_ratio(format, step, Rounding::kStochastic, weights_to_look_at(format, step));
  EXPECT_NEAR(ratio, 1.0, 0.02);
}

TEST(NearestRounding, StallsAtUpdatesBelowHalfTheFormatsStep) {
  for (double step : {2e-4, 1e-3, 1.0 / 513}) {
    EXPECT_EQ(drift_ratio(WeightFormat::kSplit24, step, Rounding::kNearest, 32), 0.0) << step;
    EXPECT_EQ(drift_ratio(WeightFormat::kBF16, step, Rounding::kNearest, 32), 0.0) << step;
  }
  EXPECT_EQ(drift_ratio(WeightFormat::kBF16, 0.1, Rounding::kNearest, 32), 0.0);
}

TEST(StochasticRounding, NoiseBytesAreUniform) {
  std::vector<int> counts(256);
  constexpr uint32_t kWords = 1 << 16;
  for (uint32_t w = 0; w < kWords; ++w) {
    const uint32_t word = formulas::mix32<formulas::Scalar>(w ^ 0x5bd1e995u);
    for (int b = 0; b < 4; ++b) ++counts[(word >> (8 * b)) & 0xff];
  }
  double chi_squared = 0;
  const double expected = 4.0 * kWords / 256;
  for (int count : counts) chi_squared += (count - expected) * (count - expected) / expected;
  EXPECT_LT(chi_squared, 340.0);  // 255 degrees of freedom: exceeded with probability 3e-4
  EXPECT_GT(chi_squared, 150.0);  // a counter in disguise would be too even
}

}  // namespace
}  // namespace flashshard
