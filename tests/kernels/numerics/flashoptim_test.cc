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
#include "tests/kernels/numerics/golden_updates.h"
#include "tests/kernels/numerics/scalar_formulas.h"
#include "tests/kernels/numerics/update_state.h"

namespace flashshard {
namespace {

using golden::decode;
using golden::Encoded;
using golden::groups_of;

template <class T>
void expect_same_bits(const std::vector<T>& ours, const std::vector<T>& theirs) {
  ASSERT_EQ(ours.size(), theirs.size());
  for (size_t i = 0; i < ours.size(); ++i) {
    ASSERT_EQ(std::memcmp(&ours[i], &theirs[i], sizeof(T)), 0)
        << i << ": " << +ours[i] << ", not " << +theirs[i];
  }
}

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

TEST(FlashOptimGolden, UpdatesStayWithinFourUlpOfTheLargestOperand) {
  for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
    SCOPED_TRACE(loops->name);
    golden::expect_flashoptim_updates(golden::step_of(*loops));
    golden::expect_flashoptim_momenta(golden::step_of(*loops));
  }
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

TEST(FlashOptimCorrections, ChangeNoInfiniteOrNaNWeight) {
  for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
    for (auto [format, infinity] : {std::pair{WeightFormat::kCorrected24, 0x7f80},
                                    {WeightFormat::kFP16Corrected24, 0x7c00}}) {
      SCOPED_TRACE(std::string(loops->name) + ", infinity " + std::to_string(infinity));
      std::vector<uint16_t> weights;
      std::vector<int8_t> corrections;
      for (int code = -128; code <= 127; ++code) {
        for (int weight : {infinity, infinity | 0x8000, infinity | 0x41, infinity | 0x8041}) {
          weights.push_back(static_cast<uint16_t>(weight));
          corrections.push_back(static_cast<int8_t>(code));
        }
      }
      std::vector<float> values(weights.size());
      const auto count = static_cast<int64_t>(values.size());
      loops->decode_master({format, values.data(), weights.data(), corrections.data(), count}, 0,
                           count);
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_EQ(std::isnan(values[i]), (weights[i] & 0x41) != 0) << i;
        ASSERT_EQ(std::isinf(values[i]), (weights[i] & 0x41) == 0) << i;
        ASSERT_EQ(std::signbit(values[i]), weights[i] >= 0x8000) << i;
      }
    }
  }
}

template <int kDivisor, int kLargest>
void expect_divisions() {
  for (int q = -kLargest - 1; q <= kLargest; ++q) {
    const auto code = static_cast<float>(q);
    const float quotient = formulas::divided_code<formulas::Scalar, kDivisor>(code);
    ASSERT_EQ(quotient, code / static_cast<float>(kDivisor)) << q << " / " << kDivisor;
  }
}
TEST(FlashOptimCodes, AreDividedAsByADivision) {
  expect_divisions<127, 127>();
  expect_divisions<255, 255>();
  expect_divisions<127 << 8, 127>();
  expect_divisions<127 << 11, 127>();
  expect_divisions<32767 << 8, 32767>();
  expect_divisions<32767 << 11, 32767>();
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
