// Updates against the golden files of other implementations, for the CPU's loops and for CUDA
// alike: PyTorch's fp32 rules, and FLASHOPTIM_V1 as the authors' package computes it (PyPI
// flashoptim 0.1.4, its kernels in Triton's interpreter; golden/make_*.py wrote the files).
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/cpu/update_loops.h"
#include "tests/kernels/numerics/golden_file.h"
#include "tests/kernels/numerics/update_state.h"

namespace flashshard::golden {

/// What is under test: one update of one tensor, in place.
using StepCall = std::function<void(const UpdateTensor&, const UpdateFactors&)>;

/// The step of one instruction set.
inline StepCall step_of(const cpu::UpdateLoops& loops) {
  return [&loops](const UpdateTensor& tensor, const UpdateFactors& factors) {
    *tensor.rejected_groups += loops.update(tensor, factors, 0, tensor.count);
  };
}

constexpr UpdateFormat kAllFP32{WeightFormat::kFP32, StateFormat::kFP32, DType::kFP32,
                                Rounding::kNearest};

// ---- PyTorch ----

inline void expect_adamw_follows_pytorch(const StepCall& step) {
  constexpr size_t kCount = 333, kSteps = 10;
  Golden golden("adamw_fp32.bin");
  const RuleCase& rule = rule_cases()[0];
  UpdateState state(rule, kAllFP32, kCount);
  const auto weights = golden.next<float>(kCount);
  for (size_t i = 0; i < kCount; ++i) state.set_weight(i, weights[i]);
  for (uint64_t t = 1; t <= kSteps; ++t) {
    const auto gradients = golden.next<float>(kCount), expected = golden.next<float>(kCount);
    const auto momenta = golden.next<float>(kCount), variances = golden.next<float>(kCount);
    for (size_t i = 0; i < kCount; ++i) state.set_gradient(i, gradients[i]);
    UpdateTensor tensor = state.tensor();
    set_decay(tensor, Rule::kAdamW, {.rate = 0.1}, 3e-3);
    step(tensor, make_update_factors(rule.rule, rule.hyper, 3e-3, 1.0, Rounding::kNearest, t));
    for (size_t i = 0; i < kCount; ++i) {
      const float x = expected[i], m = momenta[i], v = variances[i];
      ASSERT_NEAR(state.weight(i), x, 2e-6 * std::fabs(x) + 1e-8) << "step " << t << " at " << i;
      ASSERT_NEAR(state.momentum32[i], m, 1e-6 * std::fabs(m) + 1e-9 * 64) << i;
      ASSERT_NEAR(state.variance32[i], v, 2e-6 * v) << i;
    }
  }
}

inline void expect_rules_follow_pytorch(const StepCall& step) {
  constexpr size_t kCount = 97, kSteps = 5;
  const std::vector<RuleCase> rules = {
      {"Adam", Rule::kAdam, {.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8}},
      {"SGD", Rule::kSGD, {.beta1 = 0.9}},
      {"Nesterov", Rule::kSGD, {.beta1 = 0.9, .nesterov = true}},
      {"Plain", Rule::kSGD, {.beta1 = 0}}};
  Golden golden("rules_fp32.bin");
  const auto weights = golden.next<float>(kCount);
  std::vector<std::vector<float>> gradients;
  for (size_t t = 0; t < kSteps; ++t) gradients.push_back(golden.next<float>(kCount));
  for (const RuleCase& rule : rules) {
    SCOPED_TRACE(rule.name);
    UpdateState state(rule, kAllFP32, kCount);
    for (size_t i = 0; i < kCount; ++i) state.set_weight(i, weights[i]);
    for (uint64_t t = 1; t <= kSteps; ++t) {
      for (size_t i = 0; i < kCount; ++i) state.set_gradient(i, gradients[t - 1][i]);
      UpdateTensor tensor = state.tensor();
      set_decay(tensor, rule.rule, {.rate = 0.1}, 3e-3);
      step(tensor, make_update_factors(rule.rule, rule.hyper, 3e-3, 1.0, Rounding::kNearest, t));
      const auto expected = golden.next<float>(kCount), momenta = golden.next<float>(kCount);
      const auto variances = golden.next<float>(has_variance(rule.rule) ? kCount : 0);
      for (size_t i = 0; i < kCount; ++i) {
        const float x = expected[i], m = momenta[i];
        ASSERT_NEAR(state.weight(i), x, 2e-6 * std::fabs(x) + 1e-8) << "step " << t << " at " << i;
        ASSERT_NEAR(state.momentum32[i], m, 2e-6 * std::fabs(m) + 1e-7) << i;
        if (!variances.empty()) {
          ASSERT_NEAR(state.variance32[i], variances[i], 3e-6 * variances[i]) << i;
        }
      }
    }
  }
}

// ---- FlashOptim ----

inline size_t groups_of(size_t count) { return (count + kGroup - 1) / kGroup; }

struct Encoded {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
};

inline std::vector<float> decode(const cpu::UpdateLoops& loops, Moment moment,
                                 const Encoded& encoded) {
  std::vector<float> values(encoded.codes.size());
  const auto count = static_cast<int64_t>(values.size());
  loops.decode_moment({StateFormat::kFlashOptim, moment, values.data(), encoded.codes.data(),
                       encoded.scales.data(), count},
                      0, count);
  return values;
}

inline double ulp(double operand) {
  return operand == 0 ? 0x1p-149 : std::ldexp(1.0, std::max(std::ilogb(operand), -126) - 23);
}

/// What the package was given, and the constants that it made of its arguments.
struct FlashOptimInputs {
  static constexpr size_t kCount = 141;
  std::vector<float> constants, weights, gradients;
  Encoded momentum, variance;
  std::vector<uint16_t> narrow;
  std::vector<int8_t> corrections;

  explicit FlashOptimInputs(Golden& golden)
      : constants(golden.next<float>(7)),
        weights(golden.next<float>(kCount)),
        gradients(golden.next<float>(kCount)),
        momentum(next_encoded(golden)),
        variance(next_encoded(golden)),
        narrow(golden.next<uint16_t>(kCount)),
        corrections(golden.next<int8_t>(kCount)) {}

  static Encoded next_encoded(Golden& golden) {
    std::vector<uint8_t> codes = golden.next<uint8_t>(kCount);
    return {std::move(codes), golden.next<uint16_t>(groups_of(kCount))};
  }

  float learning_rate() const { return constants[0]; }
  float beta1() const { return constants[1]; }
  float beta2() const { return constants[2]; }
  float decay() const { return constants[4]; }

  /// The same constants for our kernels.
  UpdateFactors factors(const RuleCase& rule) const {
    UpdateFactors f;
    f.rule = rule.rule;
    f.nesterov = rule.hyper.nesterov;
    f.beta1 = beta1();
    f.one_minus_beta1 = 1.0f - beta1();
    f.beta2 = beta2();
    f.one_minus_beta2 = 1.0f - beta2();
    f.step_size = learning_rate();
    f.epsilon = constants[3];
    if (has_variance(rule.rule)) {
      f.step_size = static_cast<float>(double{learning_rate()} / double{constants[5]});
      f.inverse_sqrt_correction = static_cast<float>(1.0 / std::sqrt(double{constants[6]}));
    } else if (rule.rule != Rule::kLion) {
      f.one_minus_beta1 = static_cast<float>(1.0 - rule.hyper.dampening);
    }
    f.rounding = Rounding::kNearest;
    f.t = 3;
    return f;
  }

  UpdateState state(const RuleCase& rule, WeightFormat weight, StateFormat format) const {
    UpdateState state(rule, {weight, format, DType::kFP32, Rounding::kNearest}, kCount);
    const auto m = decode(cpu::scalar_update_loops(), Moment::kMomentum, momentum);
    const auto v = decode(cpu::scalar_update_loops(), Moment::kVariance, variance);
    for (size_t i = 0; i < kCount; ++i) {
      state.weight32[i] = weights[i];
      state.weight16[i] = narrow[i];
      state.correction8[i] = corrections[i];
      state.gradient32[i] = gradients[i];
      state.momentum8[i] = static_cast<int8_t>(momentum.codes[i]);
      state.variance8[i] = variance.codes[i];
      state.momentum32[i] = m[i];
      state.variance32[i] = v[i];
      state.momentum_scale[i / kGroup] = momentum.scales[i / kGroup];
      state.variance_scale[i / kGroup] = variance.scales[i / kGroup];
    }
    return state;
  }

  void step(const RuleCase& rule, UpdateState& state, const StepCall& call) const {
    UpdateTensor tensor = state.tensor();
    tensor.weight_decay_factor = has_coupled_decay(rule.rule) ? 1.0f : 1.0f - decay();
    tensor.coupled_decay = has_coupled_decay(rule.rule) ? decay() : 0.0f;
    call(tensor, factors(rule));
    EXPECT_EQ(state.rejected_groups, 0);
  }
};

/// Four ulp of the largest number that goes into a new weight, momentum or variance.
inline double tolerance(double a, double b, double c = 0) {
  return 4 * ulp(std::max({std::fabs(a), std::fabs(b), std::fabs(c)}));
}

template <class Code>
void expect_close_codes(const Encoded& theirs, OffsetArray<Code>& codes,
                        OffsetArray<uint16_t>& scales, size_t& differing) {
  for (size_t i = 0; i < theirs.codes.size(); ++i) {
    const auto expected = static_cast<Code>(theirs.codes[i]);
    ASSERT_LE(std::abs(codes[i] - expected), 1) << i;
    differing += codes[i] != expected ? 1 : 0;
  }
  for (size_t g = 0; g < theirs.scales.size(); ++g) {
    ASSERT_LE(std::abs(scales[g] - theirs.scales[g]), 1);
    differing += scales[g] != theirs.scales[g] ? 1 : 0;
  }
}

/// Steps of a half-precision weight with corrections: the two together within 4 ulp (of fp32) and
/// one step of the correction.
template <class Correction>
void expect_flashoptim_corrections(Golden& golden, const FlashOptimInputs& inputs,
                                   const std::vector<RuleCase>& rules, WeightFormat format,
                                   OffsetArray<Correction> UpdateState::*correction,
                                   const StepCall& call) {
  constexpr size_t kCount = FlashOptimInputs::kCount;
  const auto start = golden.next<uint16_t>(kCount);
  const auto start_corrections = golden.next<Correction>(kCount);
  const auto fill = [&](UpdateState& state, const std::vector<uint16_t>& weights,
                        const std::vector<Correction>& corrections) {
    for (size_t i = 0; i < kCount; ++i) {
      state.weight16[i] = weights[i];
      (state.*correction)[i] = corrections[i];
    }
  };
  size_t same = 0, moved = 0;
  for (const RuleCase& rule : rules) {
    SCOPED_TRACE(rule.name);
    const auto weights = golden.next<uint16_t>(kCount);
    const auto corrections = golden.next<Correction>(kCount);
    UpdateState before = inputs.state(rule, format, StateFormat::kFlashOptim);
    fill(before, start, start_corrections);
    UpdateState state = before, theirs = before;
    inputs.step(rule, state, call);
    fill(theirs, weights, corrections);
    for (size_t i = 0; i < kCount; ++i) {
      const double x = before.weight(i), expected = theirs.weight(i);
      UpdateState beside = theirs;
      const int code = (theirs.*correction)[i];
      (beside.*correction)[i] = static_cast<Correction>(code > 0 ? code - 1 : code + 1);
      const double step = std::fabs(expected - beside.weight(i));
      ASSERT_NEAR(state.weight(i), expected, tolerance(x, x - expected) + step) << i;
      same += state.weight(i) == theirs.weight(i) ? 1 : 0;
      moved += theirs.weight(i) != before.weight(i) ? 1 : 0;
    }
  }
  EXPECT_EQ(moved, rules.size() * kCount);
  // With 16 bits a few ulp are some steps of the correction.
  EXPECT_GE(same, rules.size() * kCount * (sizeof(Correction) == 1 ? 99 : 80) / 100);
}

/// Updates stay within 4 ulp of the largest operand, codes beside ties alone differ.
inline void expect_flashoptim_updates(const StepCall& call) {
  const std::vector<RuleCase> rules = {{"AdamW", Rule::kAdamW, {}},
                                       {"Adam", Rule::kAdam, {}},
                                       {"Lion", Rule::kLion, {}},
                                       {"SGD", Rule::kSGD, {.dampening = 0.25}},
                                       {"SGDW", Rule::kSGDW, {.dampening = 0.25}},
                                       {"Nesterov", Rule::kSGD, {.nesterov = true}}};
  Golden golden("flashoptim_updates.bin");
  const FlashOptimInputs inputs(golden);
  constexpr size_t kCount = FlashOptimInputs::kCount;
  size_t differing = 0;
  for (const RuleCase& rule : rules) {
    SCOPED_TRACE(rule.name);
    const auto weights = golden.next<float>(kCount), momenta = golden.next<float>(kCount);
    const auto variances = golden.next<float>(kCount);
    UpdateState fp32 = inputs.state(rule, WeightFormat::kFP32, StateFormat::kFP32);
    UpdateState before = fp32;
    inputs.step(rule, fp32, call);
    for (size_t i = 0; i < kCount; ++i) {
      const double x = before.weight32[i], m = before.momentum32[i], v = before.variance32[i];
      const double g = double{inputs.gradients[i]} +
                       (has_coupled_decay(rule.rule) ? double{inputs.decay()} * x : 0.0);
      ASSERT_NEAR(fp32.weight32[i], weights[i], tolerance(x, weights[i], x - weights[i])) << i;
      ASSERT_NEAR(fp32.momentum32[i], momenta[i], tolerance(m, g)) << i;
      if (has_variance(rule.rule)) {
        ASSERT_NEAR(fp32.variance32[i], variances[i], tolerance(v, g * g)) << i;
      }
    }

    const auto coded_weights = golden.next<float>(kCount);
    const Encoded momentum = FlashOptimInputs::next_encoded(golden),
                  variance = FlashOptimInputs::next_encoded(golden);
    UpdateState coded = inputs.state(rule, WeightFormat::kFP32, StateFormat::kFlashOptim);
    inputs.step(rule, coded, call);
    for (size_t i = 0; i < kCount; ++i) {
      const double x = before.weight32[i];
      ASSERT_NEAR(coded.weight32[i], coded_weights[i], tolerance(x, x - coded_weights[i])) << i;
    }
    expect_close_codes(momentum, coded.momentum8, coded.momentum_scale, differing);
    if (has_variance(rule.rule)) {
      expect_close_codes(variance, coded.variance8, coded.variance_scale, differing);
    }

    const auto narrow = golden.next<uint16_t>(kCount);
    const auto corrections = golden.next<int8_t>(kCount);
    UpdateState corrected =
        inputs.state(rule, WeightFormat::kCorrected24, StateFormat::kFlashOptim);
    inputs.step(rule, corrected, call);
    for (size_t i = 0; i < kCount; ++i) {
      ASSERT_EQ(corrected.weight16[i], narrow[i]) << i;
      ASSERT_LE(std::abs(corrected.correction8[i] - corrections[i]), 1) << i;
      differing += corrected.correction8[i] != corrections[i] ? 1 : 0;
    }
  }
  // Of 2014 codes and scales, those that a difference of a few ulp carries over a tie.
  EXPECT_EQ(differing, 1u);
  for (auto format : {WeightFormat::kCorrected32, WeightFormat::kFP16Corrected24,
                      WeightFormat::kFP16Corrected32}) {
    SCOPED_TRACE(static_cast<int>(format));
    if (correction_bytes(format) == 1) {
      expect_flashoptim_corrections(golden, inputs, rules, format, &UpdateState::correction8, call);
    } else {
      expect_flashoptim_corrections(golden, inputs, rules, format, &UpdateState::correction16,
                                    call);
    }
  }
}

/// With beta 0 a new momentum is the gradient: its codes and scales are the package's bit for bit.
inline void expect_flashoptim_momenta(const StepCall& call) {
  constexpr size_t kCount = 1293;
  Golden golden("flashoptim_codecs.bin", Golden::Read::kBeginning);
  const auto values = golden.next<float>(kCount);
  const auto codes = golden.next<int8_t>(kCount);
  const auto scales = golden.next<uint16_t>(groups_of(kCount));
  const RuleCase rule{"Lion", Rule::kLion, {.beta1 = 0.5, .beta2 = 0}};
  UpdateState state(
      rule, {WeightFormat::kFP32, StateFormat::kFlashOptim, DType::kFP32, Rounding::kNearest},
      kCount);
  for (size_t i = 0; i < kCount; ++i) state.set_gradient(i, values[i]);
  call(state.tensor(),
       make_update_factors(rule.rule, rule.hyper, 1e-3, 1.0, Rounding::kNearest, 1));
  EXPECT_EQ(state.rejected_groups, 0);
  for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(state.momentum8[i], codes[i]) << i;
  for (size_t g = 0; g < scales.size(); ++g) ASSERT_EQ(state.momentum_scale[g], scales[g]) << g;
}

}  // namespace flashshard::golden
