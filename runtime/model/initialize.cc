#include "runtime/model/initialize.h"

#include <algorithm>
#include <cassert>

#include "kernels/numerics/random_values.h"

namespace flashshard {

void initialize(const Initialization& initialization, uint64_t seed, int tensor,
                int64_t first_element, std::span<float> values) {
  assert(tensor >= 0 && first_element >= 0);
  const auto mean = static_cast<float>(initialization.mean);
  if (initialization.standard_deviation == 0) {
    std::ranges::fill(values, mean);
    return;
  }
  numerics::fill_normal(values, {.seed = seed, .tensor = static_cast<uint64_t>(tensor)},
                        static_cast<uint64_t>(first_element),
                        static_cast<float>(initialization.standard_deviation));
  if (mean != 0) {
    for (float& value : values) value += mean;
  }
}

}  // namespace flashshard
