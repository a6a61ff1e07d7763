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

float momentum_scale_of(float magnitude) {
  return Codec::scale(Codec::momentum_scale_code(bits_of(magnitude)));
}
float root_scale_of(float magnitude) {
  return Codec::scale(Codec::root_scale_code(bits_of(magnitude)));
}

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
    ASSERT_EQ(Codec::momentum_scale_code(magnitude) == code, valid) << std::hex << code;
    ASSERT_EQ(Codec::root_scale_code(magnitude) == code, valid) << std::hex << code;
  }
}

TEST(ScaleCode, MagnitudesAreRaisedToTheFloorAndCutAtTheCeiling) {
  for (auto encode : {Codec::momentum_scale_code, Codec::root_scale_code}) {
    EXPECT_EQ(encode(bits_of(0.0f)), numerics::kSmallestScaleCode);
    EXPECT_EQ(encode(bits_of(0x1p-61f)), numerics::kSmallestScaleCode);
    EXPECT_EQ(encode(bits_of(0x1p63f)), numerics::kLargestScaleCode);
    EXPECT_EQ(encode(bits_of(3e38f)), numerics::kLargestScaleCode);
  }
}

TEST(ScaleCode, MomentumRoundsToNearestEvenAndVarianceUpAtEightMantissaBits) {
  for (uint32_t b = bits_of(0x1p-60f); b < bits_of(0x1p63f); b += 7919u) {
    const double magnitude = std::bit_cast<float>(b);
    const double unit = std::ldexp(1.0, std::ilogb(magnitude) - 8);
    const double nearest = momentum_scale_of(std::bit_cast<float>(b)) - magnitude;
    ASSERT_LE(std::fabs(nearest), unit / 2) << std::hex << b;
    const double up = root_scale_of(std::bit_cast<float>(b)) - magnitude;
    ASSERT_GE(up, -unit * 15 / 0x8000) << std::hex << b;
    ASSERT_LT(up, unit) << std::hex << b;
  }
  EXPECT_EQ(Codec::momentum_scale_code(0x3f804000u), 0x3f804000u >> 15) << "a tie goes to even";
  EXPECT_EQ(Codec::momentum_scale_code(0x3f80c000u), (0x3f80c000u >> 15) + 1);
}

// These two count, as 32 million assertions would take their time without optimisation.
TEST(MomentumCode, EncodingADecodedCodeGivesItBackAtEveryScale) {
  int64_t checked = 0;
  for (uint16_t code : all_scale_codes()) {
    const float scale = Codec::scale(code);
    int wrong = 0;
    for (int q = -127; q <= 127; ++q, ++checked) {
      const float m = Codec::momentum(static_cast<float>(q), scale);
      wrong += static_cast<int8_t>(Codec::momentum_code(m, scale)) != q ? 1 : 0;
    }
    ASSERT_EQ(wrong, 0) << std::hex << code;
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
      // The least and the largest noise: so it is with all between, to nearest too.
      for (uint32_t noise : {0u, kToNearest, 255u})
        wrong += Codec::root_code(root, rate, noise) != q ? 1 : 0;
    }
    ASSERT_EQ(wrong, 0) << std::hex << code;
    ASSERT_EQ(Codec::root_scale_code(bits_of(Codec::root(255.0f, step))), code) << "and its scale";
  }
  EXPECT_EQ(checked, 31489 * 256);
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

TEST(Codes, TheLargestOfAGroupFitsAgainstItsRoundedScale) {
  for (uint32_t b = bits_of(0x1p-60f); b <= bits_of(0x1p63f); b += 4093u) {
    const float magnitude = std::bit_cast<float>(b);
    const float scale = momentum_scale_of(magnitude);
    const int momentum = static_cast<int8_t>(Codec::momentum_code(magnitude, scale));
    ASSERT_TRUE(momentum == 127 || momentum == 126) << std::hex << b;
    ASSERT_EQ(static_cast<int8_t>(Codec::momentum_code(-magnitude, scale)), -momentum);
    const float rate = Codec::codes_per_root(root_scale_of(magnitude));
    ASSERT_LE(Codec::root_code(magnitude, rate, 255), 255u) << std::hex << b;
    ASSERT_GE(Codec::root_code(magnitude, rate, 0), 254u) << std::hex << b;
  }
}

TEST(Codes, AreMonotoneAndSignSymmetricAndZeroStaysZero) {
  for (uint16_t code : sampled_scale_codes()) {
    const float scale = Codec::scale(code);
    int last_momentum = 0;
    uint32_t last_root = 0;
    ASSERT_EQ(Codec::momentum_code(0.0f, scale), 0u);
    ASSERT_EQ(Codec::root_code(0.0f, Codec::codes_per_root(scale), kToNearest), 0u);
    for (int step = 1; step <= 700; ++step) {
      const float value = scale * (static_cast<float>(step) / 700.0f);
      const int momentum = static_cast<int8_t>(Codec::momentum_code(value, scale));
      ASSERT_GE(momentum, last_momentum) << value;
      ASSERT_EQ(static_cast<int8_t>(Codec::momentum_code(-value, scale)), -momentum) << value;
      const uint32_t root = Codec::root_code(value, Codec::codes_per_root(scale), kToNearest);
      ASSERT_GE(root, last_root) << value;
      last_momentum = momentum;
      last_root = root;
    }
    ASSERT_EQ(last_momentum, 127);
    ASSERT_EQ(last_root, 255u);
  }
}

TEST(VarianceCode, IsNeverZeroBesideAPositiveRoot) {
  const float rate = Codec::codes_per_root(root_scale_of(1.0f));
  for (float root : {std::bit_cast<float>(1u), 1e-38f, 1e-9f, 1e-3f, 0.0019f})
    EXPECT_EQ(Codec::root_code(root, rate, kToNearest), 1u) << root;
  EXPECT_EQ(Codec::root_code(1e-9f, rate, 0), 1u);
  EXPECT_EQ(Codec::root_code(0.0f, rate, 255), 0u);
  EXPECT_EQ(Codec::root_code(0.01f, rate, kToNearest), 3u);
}

TEST(Codes, ErrorsStayWithinTheFormatsBounds) {
  const float scale = momentum_scale_of(1.0f);
  for (uint32_t b = 0; b <= bits_of(1.0f); b += 1013u) {
    const float value = std::bit_cast<float>(b);
    const int q = static_cast<int8_t>(Codec::momentum_code(value, scale));
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
