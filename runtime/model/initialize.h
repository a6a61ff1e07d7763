// Initial weights from a counter-based generator: element e of tensor t under seed s is a function
// of (s, t, e) alone, so every rank draws just the rows that it owns and a fresh model is the same
// at any world size. Generator and distribution: kernels/numerics/random_values.h (Philox4x32-10,
// normal quantile).
#pragma once

#include <cstdint>
#include <span>

namespace flashshard {

/// mean + standard_deviation * normal(0, 1); a deviation of 0 gives a constant.
struct Initialization {
  double mean = 0;
  double standard_deviation = 0;
};

/// values[i] = element `first_element + i` of tensor number `tensor`, in fp32. tensor,
/// first_element >= 0.
void initialize(const Initialization& initialization, uint64_t seed, int tensor,
                int64_t first_element, std::span<float> values);

}  // namespace flashshard
