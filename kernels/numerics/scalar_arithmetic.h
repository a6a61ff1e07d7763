// Arithmetic policy of one element at a time: what the formulas of formulas.inc are written
// against.
//
// A policy offers `F` (fp32 lanes), `U` (uint32 lanes, wrapping), their operators + - * / and + - &
// | ^ *, and the functions below. Every one is exactly rounded or an integer operation, so all
// policies give the same bits. With kPaired a policy loads 2 kLanes stored values at once into two
// vectors, in an order of lanes of its own (position()). Sources that use a policy compile with
// -ffp-contract=off: a fused multiply-add happens only where a formula says `fma`. Rounding mode
// and denormals are IEEE defaults.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace flashshard::numerics {

struct ScalarArithmetic {
  using F = float;
  using U = uint32_t;
  static constexpr int kLanes = 1;
  static constexpr bool kPaired = false;
  static constexpr const char* kName = "scalar";

  static F set(float value) { return value; }
  static U set_bits(uint32_t value) { return value; }
  static U bits(F x) { return std::bit_cast<uint32_t>(x); }
  static F from_bits(U x) { return std::bit_cast<float>(x); }
  /// The integer held as two's complement in `x`, |value| < 2^24.
  static F to_float(U x) { return static_cast<float>(static_cast<int32_t>(x)); }

  static F fma(F a, F b, F c) { return std::fma(a, b, c); }         // a * b + c, rounded once
  static F fma_minus(F a, F b, F c) { return std::fma(a, b, -c); }  // a * b - c, rounded once
  static F sqrt(F x) { return std::sqrt(x); }
  /// a / b of a code: |b| lies in 2^-64 to 2^64, and |a| in 2^-102 to 2^80 or is 0; a smaller a
  /// gives a quotient near 0 that need not be exact.
  static F divide_code(F a, F b) { return a / b; }
  /// The same, for those that rather multiply: `reciprocal` is 1 / b (P. Markstein, "IA-64 and
  /// elementary functions", 2000, chapter 8).
  static F divide_by(F a, F b, F /*reciprocal*/) { return a / b; }
  static F floor(F x) { return std::floor(x); }
  /// x rounded towards 0, as two's complement, for |x| < 2^22; of others, anything.
  static U truncate(F x) {
    return std::fabs(x) < 0x1p22f ? static_cast<uint32_t>(static_cast<int32_t>(x)) : 0;
  }
  static F abs(F x) { return from_bits(bits(x) & 0x7fffffffu); }
  /// 0xff of negative numbers and -0, 0 of others.
  static U sign_byte(F x) { return (0u - (bits(x) >> 31)) & 0xffu; }

  // Maxima and minima are of bit patterns: for magnitudes their order is that of the numbers, with
  // infinity and then NaN on top, so a NaN is never lost in a reduction.
  static U max(U a, U b) { return std::max(a, b); }
  static U min(U a, U b) { return std::min(a, b); }
  /// a > b ? yes : no, for values below 2^31.
  static U select_greater(U a, U b, U yes, U no) { return a > b ? yes : no; }
  template <int kBits>
  static U shift_left(U x) {
    return x << kBits;
  }
  template <int kBits>
  static U shift_right(U x) {
    return x >> kBits;
  }

  static F load_f32(const float* p) { return *p; }
  static U load_u32(const uint32_t* p) { return *p; }
  static U load_u16(const uint16_t* p) { return *p; }
  static U load_u8(const uint8_t* p) { return *p; }
  static U load_i16(const int16_t* p) { return static_cast<uint32_t>(int32_t{*p}); }
  static U load_i8(const int8_t* p) { return static_cast<uint32_t>(int32_t{*p}); }
  static void store_f32(float* p, F x) { *p = x; }
  static void store_u32(uint32_t* p, U x) { *p = x; }
  static void store_u16(uint16_t* p, U x) { *p = static_cast<uint16_t>(x); }
  static void store_u8(uint8_t* p, U x) { *p = static_cast<uint8_t>(x); }
  /// 32 values below 2^16 or 2^8, in order; packing them together is cheaper than one vector at a
  /// time.
  static void store_u16_group(uint16_t* p, const U (&x)[32]) {
    for (int i = 0; i < 32; ++i) store_u16(p + i, x[i]);
  }
  static void store_u8_group(uint8_t* p, const U (&x)[32]) {
    for (int i = 0; i < 32; ++i) store_u8(p + i, x[i]);
  }

  /// The largest lane.
  static uint32_t largest(U x) { return x; }
  /// Whether every lane is below the limit; lanes and limit are below 2^31.
  static bool all_below(U x, uint32_t limit) { return x < limit; }
  /// 0, 1, 2, ... in the lanes.
  static U lane_index() { return 0; }
  /// Sums of adjacent lanes of `low` then `high`: [l0+l1, l2+l3, ..., h0+h1, ...].
  static F adjacent_sums(F low, F high) { return low + high; }
  /// Of kLanes vectors the largest lane of each, in the order of the vectors.
  static U maxima_of_vectors(const uint32_t* vectors) { return *vectors; }
};

}  // namespace flashshard::numerics
