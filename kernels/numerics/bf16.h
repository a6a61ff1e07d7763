// bf16 <-> fp32, one value at a time: round to nearest, ties to even; every NaN becomes 0x7fc0 (as
// PyTorch has it).
#pragma once

#include <bit>
#include <cstdint>

namespace flashshard {

constexpr float bf16_to_float(uint16_t half) {
  return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
}

constexpr uint16_t float_to_bf16(float value) {
  const uint32_t x = std::bit_cast<uint32_t>(value);
  if ((x & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return static_cast<uint16_t>((x + 0x7fffu + ((x >> 16) & 1u)) >> 16);
}

}  // namespace flashshard
