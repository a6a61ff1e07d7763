// 8-bit momentum and variance codes and the 16-bit scales of their groups.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/numerics/formats.h"
#include "tests/kernels/numerics/scalar_formulas.h"

namespace flashshard {
namespace {

using formulas::Scalar;
using Codec = formulas::Companding<Scalar>;

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
using formulas::kToNearest;
float scale_of(float magnitude) { return Codec::scale(Codec::scale_code(bits_of(magnitude))); }

int momentum_code(float m, float scale, uint32_t noise) {
  return static_cast<int8_t>(Codec::momentum_code(m, scale, noise));
}
/// The least and the largest noise, between which codes are monotone; and that of rounding to
/// nearest.
constexpr uint32_t kNoises[] = {0u, kToNearest, 255u};

/// Every code from the smallest to the largest.
std::vector<uint16_t> all_scale_codes() {
  std::vector<uint16_t> codes(numerics::kLargestScaleCode - numerics::kSmallestScaleCode + 1);
  std::iota(codes.begin(), codes.end(), numerics::kSmallestScaleCode);
  return codes;
}
std::vector<uint16_t> sampled_scale_codes() {
  std::vector<uint16_t> codes = {numerics::kSmallestScaleCode, numerics::kSmallestScaleCode + 1,
                                 numerics::kLargestScaleCode - 1, numerics::kLargestScaleCode};
  for (uint32_t c = numerics::kSmallestScaleCode; c < numerics::kLargestScaleCode; c += 97)
    codes.push_back(static_cast<uint16_t>(c));
  return codes;
}

TEST(ScaleCode, EveryValidCodeSurvivesDecodingAndEncoding) {
  for (uint32_t code = 0; code <= 0xffff; ++code) {
    const uint32_t magnitude = bits_of(Codec::scale(code));
    const bool valid = numerics::is_valid_scale_code(static_cast<uint16_t>(code));
    ASSERT_EQ(Codec::scale_code(magnitude) == code, valid) << std::hex << code;
  }
}

TEST(ScaleCode, MagnitudesAreRaisedToTheFloorAndCutAtTheCeiling) {
  EXPECT_EQ(Codec::scale_code(bits_of(0.0f)), numerics::kSmallestScaleCode);
  EXPECT_EQ(Codec::scale_code(bits_of(0x1p-61f)), numerics::kSmallestScaleCode);
  EXPECT_EQ(Codec::scale_code(bits_of(0x1p63f)), numerics::kLargestScaleCode);
  EXPECT_EQ(Codec::scale_code(bits_of(3e38f)), numerics::kLargestScaleCode);
}

TEST(ScaleCode, RoundsUpAtEightMantissaBits) {
  for (uint32_t b = bits_of(0x1p-60f); b < bits_of(0x1p63f); b += 7919u) {
    const double magnitude = std::bit_cast<float>(b);
    const double unit = std::ldexp(1.0, std::ilogb(magnitude) - 8);
    const double up = scale_of(std::bit_cast<float>(b)) - magnitude;
    ASSERT_GE(up, -unit * 15 / 0x8000) << std::hex << b;
    ASSERT_LT(up, unit) << std::hex << b;
  }
  EXPECT_EQ(Codec::scale_code(0x3f80000fu), 0x3f80000fu >> 15) << "still that scale";
  EXPECT_EQ(Codec::scale_code(0x3f800010u), (0x3f800010u >> 15) + 1);
}

// These two count, as 32 million assertions would take their time without optimisation.
TEST(MomentumCode, EncodingADecodedCodeGivesItBackAtEveryScale) {
  int64_t checked = 0;
  for (uint16_t code : all_scale_codes()) {
    const float scale = Codec::scale(code);
    int wrong = 0;
    for (int q = -127; q <= 127; ++q, ++checked) {
      const float m = Codec::momentum(static_cast<float>(q), scale);
      for (uint32_t noise : kNoises) wrong += momentum_code(m, scale, noise) != q ? 1 : 0;
    }
    ASSERT_EQ(wrong, 0) << std::hex << code;
    ASSERT_EQ(Codec::scale_code(bits_of(Codec::momentum(127.0f, scale))), code) << "and its scale";
  }
  EXPECT_EQ(checked, 31489 * 255);
}

TEST(VarianceCode, EncodingADecodedCodeGivesItBackAtEveryScale) {
  int64_t checked = 0;
  for (uint16_t code : all_scale_codes()) {
    const float scale = Codec::scale(code);
    const float step = Codec::root_step(scale), rate = Codec::codes_per_root(scale);
    int wrong = 0;
    for (uint32_t q = 0; q <= 255; ++q, ++checked) {
      const float root = Codec::root(static_cast<float>(q), step);
      for (uint32_t noise : kNoises) wrong += Codec::root_code(root, rate, noise) != q ? 1 : 0;
    }
    ASSERT_EQ(wrong, 0) << std::hex << code;
    ASSERT_EQ(Codec::scale_code(bits_of(Codec::root(255.0f, step))), code) << "and its scale";
  }
  EXPECT_EQ(checked, 31489 * 256);
}

TEST(MomentumCode, IsUnbiasedOverTheNoise) {
  for (int k = 0; k <= 127 * 256; k += 7) {
    // Between the codes, a momentum against the scale 1: k = 65024 m / (1 + m).
    const auto m = static_cast<float>(k / (65024.0 - k));
    int sum = 0;
    for (uint32_t noise = 0; noise < 256; ++noise) sum += momentum_code(m, 1.0f, noise);
    ASSERT_EQ(sum, k);
  }
}

TEST(VarianceCode, IsUnbiasedOverTheNoise) {
  const float rate = Codec::codes_per_root(1.0f);
  for (int k = 256; k <= 65280; k += 13) {
    const float root = static_cast<float>(k) / 65280.0f;
    uint32_t sum = 0;
    for (uint32_t noise = 0; noise < 256; ++noise) sum += Codec::root_code(root, rate, noise);
    ASSERT_EQ(sum, static_cast<uint32_t>(k));
  }
}

TEST(Codes, TheLargestOfAGroupFitsAgainstItsScale) {
  for (uint32_t b = bits_of(0x1p-60f); b <= bits_of(0x1p63f); b += 4093u) {
    const float magnitude = std::bit_cast<float>(b);
    const float scale = scale_of(magnitude);
    ASSERT_EQ(momentum_code(magnitude, scale, 255), 127) << std::hex << b;
    ASSERT_GE(momentum_code(magnitude, scale, 0), 126) << std::hex << b;
    const float rate = Codec::codes_per_root(scale);
    ASSERT_EQ(Codec::root_code(magnitude, rate, 255), 255u) << std::hex << b;
    ASSERT_GE(Codec::root_code(magnitude, rate, 0), 254u) << std::hex << b;
  }
}

TEST(Codes, AreMonotoneAndSignSymmetricAndZeroStaysZero) {
  for (uint16_t code : sampled_scale_codes()) {
    const float scale = Codec::scale(code), rate = Codec::codes_per_root(scale);
    for (uint32_t noise : kNoises) {
      int last_momentum = 0;
      uint32_t last_root = 0;
      ASSERT_EQ(Codec::momentum_code(0.0f, scale, noise), 0u);
      ASSERT_EQ(Codec::momentum_code(-0.0f, scale, noise), 0u);
      ASSERT_EQ(Codec::root_code(0.0f, rate, noise), 0u);
      for (int step = 1; step <= 700; ++step) {
        const float value = scale * (static_cast<float>(step) / 700.0f);
        const int momentum = momentum_code(value, scale, noise);
        ASSERT_GE(momentum, last_momentum) << value;
        ASSERT_EQ(momentum_code(-value, scale, noise), -momentum) << value;
        const uint32_t root = Codec::root_code(value, rate, noise);
        ASSERT_GE(root, last_root) << value;
        last_momentum = momentum;
        last_root = root;
      }
      ASSERT_EQ(last_momentum, 127);
      ASSERT_EQ(last_root, 255u);
    }
  }
}

TEST(VarianceCode, IsNeverZeroBesideAPositiveRoot) {
  const float rate = Codec::codes_per_root(scale_of(1.0f));
  const float smallest = std::sqrt(std::bit_cast<float>(1u));
  for (float root : {smallest, 1e-20f, 1e-9f, 1e-3f, 0.0019f})
    EXPECT_EQ(Codec::root_code(root, rate, kToNearest), 1u) << root;
  EXPECT_EQ(Codec::root_code(1e-9f, rate, 0), 1u);
  EXPECT_EQ(Codec::root_code(0.0f, rate, 255), 0u);
  EXPECT_EQ(Codec::root_code(0.01f, rate, kToNearest), 3u);
}

TEST(Codes, ErrorsStayWithinTheFormatsBounds) {
  const float scale = scale_of(1.0f);
  for (uint32_t b = 0; b <= bits_of(1.0f); b += 1013u) {
    const float value = std::bit_cast<float>(b);
    const int q = momentum_code(value, scale, kToNearest);
    const double m = Codec::momentum(static_cast<float>(q), scale);
    // The companding's slope is (1 + u)^2 / 2: half a code is worth that over 254.
    ASSERT_LE(std::fabs(m - value), (1.0 + value) * (1.0 + value) / 508.0 * 1.01) << value;
    const uint32_t z = Codec::root_code(value, Codec::codes_per_root(scale), kToNearest);
    const double root = Codec::root(static_cast<float>(z), Codec::root_step(scale));
    ASSERT_LE(std::fabs(root - value), value < 1.0 / 510 ? 1.001 / 255 : 1.005 / 510) << value;
  }
}

}  // namespace
}  // namespace flashshard
