// FLASHOPTIM_V1 against the authors' package (PyPI flashoptim 0.1.4): codes, scales and corrections
// bit for bit, updates within 4 ulp of the largest operand. The golden files come from the
// package's own kernels in Triton's interpreter, see golden/make_flashoptim_golden.py.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/update_loops.h"
#include "kernels/numerics/bf16.h"
#include "tests/kernels/numerics/golden_file.h"
#include "tests/kernels/numerics/scalar_formulas.h"
#include "tests/kernels/numerics/update_state.h"

namespace flashshard {
namespace {

size_t groups_of(size_t count) { return (count + kGroup - 1) / kGroup; }

template <class T>
void expect_same_bits(const std::vector<T>& ours, const std::vector<T>& theirs) {
  ASSERT_EQ(ours.size(), theirs.size());
  for (size_t i = 0; i < ours.size(); ++i) {
    ASSERT_EQ(std::memcmp(&ours[i], &theirs[i], sizeof(T)), 0)
        << i << ": " << +ours[i] << ", not " << +theirs[i];
  }
}

struct Encoded {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
};

Encoded encode(const cpu::UpdateLoops& loops, Moment moment, std::span<const float> values) {
  Encoded result{std::vector<uint8_t>(values.size()),
                 std::vector<uint16_t>(groups_of(values.size()))};
  const auto count = static_cast<int64_t>(values.size());
  EXPECT_EQ(loops.encode_moment({StateFormat::kFlashOptim, moment, values.data(),
                                 result.codes.data(), result.scales.data(), count},
                                0, count),
            0);
  return result;
}

std::vector<float> decode(const cpu::UpdateLoops& loops, Moment moment, const Encoded& encoded) {
  std::vector<float> values(encoded.codes.size());
  const auto count = static_cast<int64_t>(values.size());
  loops.decode_moment({StateFormat::kFlashOptim, moment, values.data(), encoded.codes.data(),
                       encoded.scales.data(), count},
                      0, count);
  return values;
}

TEST(FlashOptimGolden, CodesScalesAndCorrectionsAreThePackagesBitForBit) {
  Golden golden("flashoptim_codecs.bin");
  std::vector<float> momenta;
  for (auto [moment, count] :
       {std::pair{Moment::kMomentum, size_t{1293}}, {Moment::kVariance, size_t{1281}}}) {
    const auto values = golden.next<float>(count);
    if (moment == Moment::kMomentum) momenta = values;
    const Encoded expected{golden.next<uint8_t>(count), golden.next<uint16_t>(groups_of(count))};
    const auto decoded = golden.next<float>(count);
    for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
      SCOPED_TRACE(loops->name);
      const Encoded ours = encode(*loops, moment, values);
      expect_same_bits(ours.codes, expected.codes);
      expect_same_bits(ours.scales, expected.scales);
      expect_same_bits(decode(*loops, moment, expected), decoded);
    }
  }
  for (size_t count : {size_t{1}, size_t{31}, size_t{45}}) {
    const Encoded expected{golden.next<uint8_t>(count), golden.next<uint16_t>(groups_of(count))};
    const Encoded ours =
        encode(cpu::update_loops(), Moment::kMomentum, std::span(momenta).subspan(600, count));
    expect_same_bits(ours.codes, expected.codes);
    expect_same_bits(ours.scales, expected.scales);
  }
  for (WeightFormat format : {WeightFormat::kCorrected24, WeightFormat::kCorrected32,
                              WeightFormat::kFP16Corrected24, WeightFormat::kFP16Corrected32}) {
    constexpr size_t kCount = 1500;
    const auto bytes = static_cast<size_t>(correction_bytes(format)) * kCount;
    const auto values = golden.next<float>(kCount);
    const auto weight = golden.next<uint16_t>(kCount);
    const auto correction = golden.next<uint8_t>(bytes);
    const auto decoded = golden.next<float>(kCount);
    for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
      SCOPED_TRACE(std::string(loops->name) + ", format " +
                   std::to_string(static_cast<int>(format)));
      std::vector<uint16_t> our_weight(kCount);
      std::vector<uint8_t> our_correction(bytes);
      std::vector<float> our_values(kCount);
      ASSERT_EQ(
          loops->encode_master(
              {format, values.data(), our_weight.data(), our_correction.data(), kCount}, 0, kCount),
          0);
      expect_same_bits(our_weight, weight);
      expect_same_bits(our_correction, correction);
      loops->decode_master({format, our_values.data(), weight.data(), correction.data(), kCount}, 0,
                           kCount);
      expect_same_bits(our_values, decoded);
    }
  }
}

// ---- updates ----

double ulp(double operand) {
  return operand == 0 ? 0x1p-149 : std::ldexp(1.0, std::max(std::ilogb(operand), -126) - 23);
}

/// What the package was given, and the constants that it made of its arguments.
struct Inputs {
  static constexpr size_t kCount = 141;
  std::vector<float> constants, weights, gradients;
  Encoded momentum, variance;
  std::vector<uint16_t> narrow;
  std::vector<int8_t> corrections;

  explicit Inputs(Golden& golden)
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

  void step(const RuleCase& rule, UpdateState& state) const {
    UpdateTensor tensor = state.tensor();
    tensor.weight_decay_factor = has_coupled_decay(rule.rule) ? 1.0f : 1.0f - decay();
    tensor.coupled_decay = has_coupled_decay(rule.rule) ? decay() : 0.0f;
    ASSERT_EQ(cpu::update_loops().update(tensor, factors(rule), 0, kCount), 0);
  }
};

/// Four ulp of the largest number that goes into a new weight, momentum or variance.
double tolerance(double a, double b, double c = 0) {
  return 4 * ulp(std::max({std::fabs(a), std::fabs(b), std::fabs(c)}));
}

void expect_close_codes(const Encoded& theirs, OffsetArray<int8_t>& codes,
                        OffsetArray<uint16_t>& scales, size_t& differing) {
  for (size_t i = 0; i < theirs.codes.size(); ++i) {
    const auto expected = static_cast<int8_t>(theirs.codes[i]);
    ASSERT_LE(std::abs(codes[i] - expected), 1) << i;
    differing += codes[i] != expected ? 1 : 0;
  }
  for (size_t g = 0; g < theirs.scales.size(); ++g) {
    ASSERT_LE(std::abs(scales[g] - theirs.scales[g]), 1);
    differing += scales[g] != theirs.scales[g] ? 1 : 0;
  }
}

TEST(FlashOptimGolden, UpdatesStayWithinFourUlpOfTheLargestOperand) {
  const std::vector<RuleCase> rules = {{"AdamW", Rule::kAdamW, {}},
                                       {"Adam", Rule::kAdam, {}},
                                       {"Lion", Rule::kLion, {}},
                                       {"SGD", Rule::kSGD, {.dampening = 0.25}},
                                       {"SGDW", Rule::kSGDW, {.dampening = 0.25}},
                                       {"Nesterov", Rule::kSGD, {.nesterov = true}}};
  Golden golden("flashoptim_updates.bin");
  const Inputs inputs(golden);
  constexpr size_t kCount = Inputs::kCount;
  size_t differing = 0;
  for (const RuleCase& rule : rules) {
    SCOPED_TRACE(rule.name);
    const auto weights = golden.next<float>(kCount), momenta = golden.next<float>(kCount);
    const auto variances = golden.next<float>(kCount);
    UpdateState fp32 = inputs.state(rule, WeightFormat::kFP32, StateFormat::kFP32);
    UpdateState before = fp32;
    inputs.step(rule, fp32);
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
    const Encoded momentum = Inputs::next_encoded(golden), variance = Inputs::next_encoded(golden);
    UpdateState coded = inputs.state(rule, WeightFormat::kFP32, StateFormat::kFlashOptim);
    inputs.step(rule, coded);
    for (size_t i = 0; i < kCount; ++i) {
      const double x = before.weight32[i];
      ASSERT_NEAR(coded.weight32[i], coded_weights[i], tolerance(x, x - coded_weights[i])) << i;
      if (has_variance(rule.rule)) {
        ASSERT_LE(std::abs(coded.variance8[i] - variance.codes[i]), 1);
        differing += coded.variance8[i] != variance.codes[i] ? 1 : 0;
      }
    }
    expect_close_codes(momentum, coded.momentum8, coded.momentum_scale, differing);

    const auto narrow = golden.next<uint16_t>(kCount);
    const auto corrections = golden.next<int8_t>(kCount);
    UpdateState corrected =
        inputs.state(rule, WeightFormat::kCorrected24, StateFormat::kFlashOptim);
    inputs.step(rule, corrected);
    for (size_t i = 0; i < kCount; ++i) {
      ASSERT_EQ(corrected.weight16[i], narrow[i]) << i;
      ASSERT_LE(std::abs(corrected.correction8[i] - corrections[i]), 1) << i;
      differing += corrected.correction8[i] != corrections[i] ? 1 : 0;
    }
  }
  // Of 2500 codes, those that a difference of a few ulp carries over a tie.
  EXPECT_EQ(differing, 1u);
}

// ---- properties of the codes ----

using Codec = formulas::FlashOptimCompanding<formulas::Scalar>;

TEST(FlashOptimCodes, TiesGoUp) {
  // |code| exactly half way: down for negative values.
  const auto code = [](float value, float unit) {
    return static_cast<int8_t>(Codec::momentum_code(value, unit));
  };
  EXPECT_EQ(code(1.0f / 3.0f, 1.0f), 64);  // 63.5
  EXPECT_EQ(code(-1.0f / 3.0f, 1.0f), -63);
  EXPECT_EQ(code(1.0f, 1.0f), 127);
  EXPECT_EQ(code(-1.0f, 1.0f), -127);
}

TEST(FlashOptimCodes, AreMonotoneAndSignSymmetricButForTies) {
  const float unit = 3.0f;
  int last_momentum = -128, ties = 0;
  uint32_t last_root = 0;
  for (int64_t step = -30000; step <= 30000; ++step) {
    const float value = static_cast<float>(step) * 1e-4f;
    const int momentum = static_cast<int8_t>(Codec::momentum_code(value, unit));
    ASSERT_GE(momentum, last_momentum) << value;
    last_momentum = momentum;
    const int opposite = static_cast<int8_t>(Codec::momentum_code(-value, unit));
    ASSERT_TRUE(opposite == -momentum || opposite == 1 - momentum) << value;
    ties += opposite != -momentum ? 1 : 0;
    if (step < 0) continue;
    ASSERT_GE(Codec::root_code(value, unit), last_root) << value;
    last_root = Codec::root_code(value, unit);
  }
  EXPECT_EQ(last_momentum, 127);
  EXPECT_EQ(last_root, 255u);
  EXPECT_EQ(ties, 4);
  EXPECT_EQ(Codec::momentum_code(0.0f, unit), 0u);
  EXPECT_EQ(Codec::root_code(0.0f, unit), 0u);
}

TEST(FlashOptimCodes, AGroupWhoseScaleWouldBeInfiniteIsLeftAsItWas) {
  for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
    std::vector<float> values(70, 1.0f);
    values[40] = 65520.0f;
    std::vector<int8_t> codes(70, 11);
    std::vector<uint16_t> scales(3, 77);
    EXPECT_EQ(loops->encode_moment({StateFormat::kFlashOptim, Moment::kMomentum, values.data(),
                                    codes.data(), scales.data(), 70},
                                   0, 70),
              1);
    EXPECT_EQ(codes[31], 127);
    EXPECT_EQ(codes[40], 11);
    EXPECT_EQ(scales[1], 77);
    EXPECT_EQ(codes[69], 127);
  }
}

TEST(FlashOptimCodes, FP16ConvertsEveryPatternThereAndBack) {
  using Half = formulas::FP16<formulas::Scalar>;
  for (uint32_t half = 0; half <= 0xffff; ++half) {
    const bool nan = (half & 0x7fff) > 0x7c00;
    const float value = Half::decode(half);
    ASSERT_EQ(Half::encode(value), nan ? (half & 0x8000) | 0x7e00 : half) << std::hex << half;
    if ((half & 0x7c00) != 0x7c00) {
      ASSERT_EQ(value, half_to_float(static_cast<uint16_t>(half)));
    }
  }
  EXPECT_EQ(Half::encode(1.0f + 0x1p-11f), 0x3c00u) << "ties to even";
  EXPECT_EQ(Half::encode(1.0f + 0x3p-11f), 0x3c02u);
  EXPECT_EQ(Half::encode(0x1p-25f), 0u);
  EXPECT_EQ(Half::encode(0x1.8p-24f), 2u);
  EXPECT_EQ(Half::encode(65519.996f), 0x7bffu);
  EXPECT_EQ(Half::encode(-65520.0f), 0xfc00u);
}

}  // namespace
}  // namespace flashshard
