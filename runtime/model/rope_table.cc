#include "runtime/model/rope_table.h"

#include <cmath>
#include <cstddef>

namespace flashshard {

std::vector<float> rope_table(int64_t positions, int head_dim, double theta) {
  const int half = head_dim / 2;
  std::vector<float> table(static_cast<size_t>(positions) * static_cast<size_t>(head_dim));
  for (int i = 0; i < half; ++i) {
    const double frequency = std::pow(theta, -2.0 * i / head_dim);
    for (int64_t position = 0; position < positions; ++position) {
      const double angle = static_cast<double>(position) * frequency;
      float* row = table.data() + position * head_dim;
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

}  // namespace flashshard
