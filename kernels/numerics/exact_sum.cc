#include "kernels/numerics/exact_sum.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace flashshard::numerics {

void carry_exact(ExactSum limbs) {
  int64_t carry = 0;
  for (size_t i = 0; i + 1 < kExactSumLimbs; ++i) {
    const int64_t sum = limbs[i] + carry;
    limbs[i] = sum & 0xffffffff;
    carry = sum >> 32;
  }
  limbs[kExactSumLimbs - 1] += carry;
}

double exact_sum_value(std::span<const int64_t, kExactSumLimbs> limbs) {
  std::array<int64_t, kExactSumLimbs> sum;
  std::copy(limbs.begin(), limbs.end(), sum.begin());
  carry_exact(sum);
  // Split the last limb's upper half off: below it every digit is 32 bits.
  std::array<uint32_t, kExactSumLimbs + 1> digits;
  for (size_t i = 0; i < kExactSumLimbs; ++i) digits[i] = static_cast<uint32_t>(sum[i]);
  digits[kExactSumLimbs] = static_cast<uint32_t>(static_cast<uint64_t>(sum.back()) >> 32);

  size_t top = kExactSumLimbs;
  while (top > 0 && digits[top] == 0) --top;
  if (digits[top] == 0) return 0.0;
  const auto digit = [&](size_t below) { return top >= below ? digits[top - below] : 0u; };
  // The leading 64 bits, then one sticky bit for all below: more than 53 + 2, so one rounding
  // decides.
  const int shift = std::countl_zero(digits[top]);
  const uint64_t next = (uint64_t{digit(1)} << 32) | digit(2);
  uint64_t leading = (uint64_t{digits[top]} << (32 + shift)) | (next >> (32 - shift));
  bool sticky = static_cast<uint32_t>(next << shift) != 0;
  for (size_t i = 3; i <= top; ++i) sticky = sticky || digit(i) != 0;
  if (sticky) leading |= 1;
  return std::ldexp(static_cast<double>(leading), 32 * (static_cast<int>(top) - 1) - shift - 149);
}

}  // namespace flashshard::numerics
