// What readers and writers of stored state need to know of the formats (docs/numerics.md): fresh
// values and valid codes.
#pragma once

#include <cstdint>

namespace flashshard::numerics {

/// Scale codes of companded state; any other code in a file is corrupt.
constexpr uint16_t kSmallestScaleCode =
    0x4300;  // 2^-60, also the scale of a fresh state (with codes 0)
constexpr uint16_t kLargestScaleCode = 0xbe00;  // 2^63
constexpr bool is_valid_scale_code(uint16_t code) {
  return code >= kSmallestScaleCode && code <= kLargestScaleCode;
}

/// A gradient counts as non-finite from this magnitude up, infinity and NaN included: below it no
/// square, sum of a group, scale or momentum can overflow.
constexpr uint32_t kNonFiniteGradientBits = 0x5d800000u;  // 2^60

}  // namespace flashshard::numerics
