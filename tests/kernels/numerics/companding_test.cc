// 8-bit momentum and variance codes and the 16-bit scales of their groups.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "kernels/numerics/formats.h"
#include "tests/kernels/numerics/scalar_formulas.h"

namespace flashshard {
namespace {

using formulas::Scalar;
using Codec = formulas::Companding<Scalar>;

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
float scale_of(float magnitude) { return Codec::scale(Codec::scale_code(bits_of(magnitude))); }

std::vector<uint16_t> sampled_scale_codes() {
  std::vector<uint16_t> codes = {numerics::kSmallestScaleCode, numerics::kSmallestScaleCode + 1,
                                 numerics::kLargestScaleCode - 1, numerics::kLargestScaleCode};
  for (uint32_t c = numerics::kSmallestScaleCode; c < numerics::kLargestScaleCode; c += 97)
    codes.push_back(static_cast<uint16_t>(c));
  return codes;
}

TEST(ScaleCode, EveryValidCodeSurvivesDecodingAndEncoding) {
  for (uint32_t code = 0; code <= 0xffff; ++code) {
    const bool kept = code < 0x8000 * 2 && Codec::scale_code(bits_of(Codec::scale(code))) == code;
    const bool valid = numerics::is_valid_scale_code(static_cast<uint16_t>(code));
    ASSERT_EQ(kept, valid) << std::hex << code;
  }
}

TEST(ScaleCode, MagnitudesAreRaisedToTheFloorAndCutAtTheCeiling) {
  EXPECT_EQ(Codec::scale_code(bits_of(0.0f)), numerics::kSmallestScaleCode);
  EXPECT_EQ(Codec::scale_code(bits_of(0x1p-61f)), numerics::kSmallestScaleCode);
  EXPECT_EQ(Codec::scale_code(bits_of(0x1p63f)), numerics::kLargestScaleCode);
  EXPECT_EQ(Codec::scale_code(bits_of(3e38f)), numerics::kLargestScaleCode);
}

TEST(ScaleCode, RoundsToNearestEvenAtEightMantissaBits) {
  for (uint32_t b = bits_of(0x1p-60f); b < bits_of(0x1p63f); b += 7919u) {
    const double magnitude = std::bit_cast<float>(b);
    const double error = std::fabs(double{scale_of(std::bit_cast<float>(b))} - magnitude);
    ASSERT_LE(error, std::ldexp(1.0, std::ilogb(magnitude) - 9)) << std::hex << b;
  }
  EXPECT_EQ(Codec::scale_code(0x3f804000u), 0x3f804000u >> 15) << "a tie goes to the even code";
  EXPECT_EQ(Codec::scale_code(0x3f80c000u), (0x3f80c000u >> 15) + 1);
}

TEST(MomentumCode, EncodingADecodedCodeGivesItBackAtEveryScale) {
  for (uint16_t code : sampled_scale_codes()) {
    const float scale = Codec::scale(code);
    for (int q = -127; q <= 127; ++q) {
      const float m = Codec::momentum(static_cast<float>(q), scale);
      ASSERT_EQ(static_cast<int8_t>(Codec::momentum_code(m, scale)), q) << std::hex << code;
    }
  }
}

TEST(VarianceCode, EncodingADecodedCodeGivesItBackAtEveryScale) {
  for (uint16_t code : sampled_scale_codes()) {
    const float scale = Codec::scale(code);
    for (uint32_t q = 0; q <= 255; ++q) {
      const float root = Codec::root(static_cast<float>(q), Codec::root_step(scale));
      ASSERT_EQ(Codec::root_code(root, Codec::codes_per_root(scale)), q) << std::hex << code;
    }
  }
}

TEST(Codes, TheLargestOfAGroupFitsAgainstItsRoundedScale) {
  for (uint32_t b = bits_of(0x1p-60f); b <= bits_of(0x1p63f); b += 4093u) {
    const float magnitude = std::bit_cast<float>(b);
    const float scale = scale_of(magnitude);
    const int momentum = static_cast<int8_t>(Codec::momentum_code(magnitude, scale));
    ASSERT_TRUE(momentum == 127 || momentum == 126) << std::hex << b;
    ASSERT_EQ(static_cast<int8_t>(Codec::momentum_code(-magnitude, scale)), -momentum);
    const float root = magnitude * Codec::codes_per_root(scale);
    ASSERT_LT(root, 255.5f) << std::hex << b;
    ASSERT_GE(Codec::root_code(magnitude, Codec::codes_per_root(scale)), 254u);
  }
}

TEST(Codes, AreMonotoneAndSignSymmetricAndZeroStaysZero) {
  for (uint16_t code : sampled_scale_codes()) {
    const float scale = Codec::scale(code);
    int last_momentum = 0;
    uint32_t last_root = 0;
    ASSERT_EQ(Codec::momentum_code(0.0f, scale), 0u);
    ASSERT_EQ(Codec::root_code(0.0f, Codec::codes_per_root(scale)), 0u);
    for (int step = 1; step <= 700; ++step) {
      const float value = scale * (static_cast<float>(step) / 700.0f);
      const int momentum = static_cast<int8_t>(Codec::momentum_code(value, scale));
      ASSERT_GE(momentum, last_momentum) << value;
      ASSERT_EQ(static_cast<int8_t>(Codec::momentum_code(-value, scale)), -momentum) << value;
      const uint32_t root = Codec::root_code(value, Codec::codes_per_root(scale));
      ASSERT_GE(root, last_root) << value;
      last_momentum = momentum;
      last_root = root;
    }
    ASSERT_EQ(last_momentum, 127);
    ASSERT_EQ(last_root, 255u);
  }
}

TEST(VarianceCode, IsNeverZeroBesideAPositiveRoot) {
  const float rate = Codec::codes_per_root(scale_of(1.0f));
  for (float root : {std::bit_cast<float>(1u), 1e-38f, 1e-9f, 1e-3f, 0.0019f})
    EXPECT_EQ(Codec::root_code(root, rate), 1u) << root;
  EXPECT_EQ(Codec::root_code(0.0f, rate), 0u);
  EXPECT_EQ(Codec::root_code(0.01f, rate), 3u);
}

TEST(Codes, ErrorsStayWithinTheFormatsBounds) {
  const float scale = scale_of(1.0f);
  for (uint32_t b = 0; b <= bits_of(1.0f); b += 1013u) {
    const float value = std::bit_cast<float>(b);
    const int q = static_cast<int8_t>(Codec::momentum_code(value, scale));
    const double m = Codec::momentum(static_cast<float>(q), scale);
    // The companding's slope is (1 + u)^2 / 2: half a code is worth that over 254.
    ASSERT_LE(std::fabs(m - value), (1.0 + value) * (1.0 + value) / 508.0 * 1.01) << value;
    const uint32_t z = Codec::root_code(value, Codec::codes_per_root(scale));
    const double root = Codec::root(static_cast<float>(z), Codec::root_step(scale));
    ASSERT_LE(std::fabs(root - value), value < 1.0 / 510 ? 1.001 / 255 : 1.001 / 510) << value;
  }
}

}  // namespace
}  // namespace flashshard
