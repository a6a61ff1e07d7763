// Exact sums of non-negative floats: ten int64 limbs of base 2^32, unit 2^-149 (the smallest
// float). Integer additions are order-free, so a sum over ranks is an integer all-reduce of 80
// bytes and has the same bits at every sharding.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace flashshard::numerics {

constexpr size_t kExactSumLimbs = 10;
using ExactSum = std::span<int64_t, kExactSumLimbs>;

/// limbs += value, a finite float >= 0. At most 2^31 additions between two calls of carry_exact.
constexpr void add_exact(ExactSum limbs, float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t exponent = bits >> 23;
  const uint64_t mantissa = (bits & 0x7fffffu) | (exponent != 0 ? 0x800000u : 0u);
  const uint32_t position =
      exponent != 0 ? exponent - 1 : 0;  // value = mantissa * 2^(position - 149)
  const uint64_t shifted = mantissa << (position % 32);
  limbs[position / 32] += static_cast<int64_t>(shifted & 0xffffffffu);
  limbs[position / 32 + 1] += static_cast<int64_t>(shifted >> 32);
}

/// limbs += other.
inline void merge_exact(ExactSum limbs, std::span<const int64_t, kExactSumLimbs> other) {
  for (size_t i = 0; i < kExactSumLimbs; ++i) limbs[i] += other[i];
}

/// Carries, so that every limb but the last lies in [0, 2^32): one representation for each value.
void carry_exact(ExactSum limbs);

/// The sum, rounded once to the nearest double, ties to even. Limbs need not be carried.
double exact_sum_value(std::span<const int64_t, kExactSumLimbs> limbs);

}  // namespace flashshard::numerics
