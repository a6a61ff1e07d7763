// Random numbers keyed by (seed, tensor, element): initial weights and whatever else must not
// depend on the sharding.
#pragma once

#include <cstdint>
#include <span>

namespace flashshard::numerics {

/// Key of a sequence of random numbers; element e of it is word e mod 4 of philox4x32 with counter
/// (e / 4, tensor) and key `seed`, all little-endian halves of 64-bit values.
struct RandomKey {
  uint64_t seed = 0;
  uint64_t tensor = 0;
};

uint32_t random_bits(const RandomKey& key, uint64_t element);

/// The standard normal quantile of (word + 1/2) / 2^32, by algorithm AS 241 (Wichura 1988) in fp64,
/// rounded once. |value| <= 6.34.
float normal_from_bits(uint32_t word);

/// values[i] = low + (high - low) * u, u in [0, 1) in steps of 2^-24, for elements first_element +
/// i; in fp32.
void fill_uniform(std::span<float> values, const RandomKey& key, uint64_t first_element, float low,
                  float high);
/// values[i] = deviation * normal, for elements first_element + i; in fp32.
void fill_normal(std::span<float> values, const RandomKey& key, uint64_t first_element,
                 float deviation);

}  // namespace flashshard::numerics
