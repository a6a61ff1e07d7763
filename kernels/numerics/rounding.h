// Keys of the stochastic rounding hash. The noise of element e (its 64-bit index in the whole
// tensor) depends on (seed, tensor, t, e) alone: the same at every sharding, split over threads and
// vector width.
//
//   8-bit noise   byte e mod 4 (little-endian) of mix32(uint32(e / 4) ^ k),  k = rounding_key(key,
//   t, e >> 34) 16-bit noise  half e mod 2 (little-endian) of mix32(uint32(e / 2) ^ k),  k =
//   rounding_key(key, t, e >> 33)
//
// mix32 stands in formulas.inc. splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom
// number generators" (2014).
#pragma once

#include <cstdint>

#include "kernels/numerics/update_args.h"

namespace flashshard::numerics {

/// One output of splitmix64 from state `x`.
constexpr uint64_t splitmix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Low 32 bits of splitmix64 chained over (seed, tensor, t, block): h = splitmix64(seed), h =
/// splitmix64(h ^ tensor), ...
constexpr uint32_t rounding_key(const RoundingKey& key, uint64_t t, uint64_t block) {
  uint64_t hash = splitmix64(key.seed);
  hash = splitmix64(hash ^ key.tensor);
  hash = splitmix64(hash ^ t);
  hash = splitmix64(hash ^ block);
  return static_cast<uint32_t>(hash);
}

}  // namespace flashshard::numerics
