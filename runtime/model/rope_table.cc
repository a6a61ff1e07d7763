#include "runtime/model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>

namespace flashshard {
namespace {

double scaled(double frequency, const RopeScaling& scaling) {
  const double turns =
      static_cast<double>(scaling.original_positions) * frequency / (2 * std::numbers::pi);
  const double kept = std::clamp((turns - scaling.low_frequency_factor) /
                                     (scaling.high_frequency_factor - scaling.low_frequency_factor),
                                 0.0, 1.0);
  return frequency * (kept + (1 - kept) / scaling.factor);
}

}  // namespace

std::vector<double> rope_frequencies(int head_dim, double theta, const RopeScaling& scaling) {
  std::vector<double> frequencies;
  frequencies.reserve(static_cast<size_t>(head_dim / 2));
  for (int i = 0; i < head_dim / 2; ++i) {
    const double frequency = std::pow(theta, -2.0 * i / head_dim);
    frequencies.push_back(scaling.kind == RopeScaling::Kind::kNone ? frequency
                                                                   : scaled(frequency, scaling));
  }
  return frequencies;
}

std::vector<float> rope_table(int64_t positions, int head_dim, double theta,
                              const RopeScaling& scaling) {
  const std::vector<double> frequencies = rope_frequencies(head_dim, theta, scaling);
  const size_t half = frequencies.size();
  std::vector<float> table(static_cast<size_t>(positions) * static_cast<size_t>(head_dim));
  for (size_t i = 0; i < half; ++i) {
    for (int64_t position = 0; position < positions; ++position) {
      const double angle = static_cast<double>(position) * frequencies[i];
      float* row = table.data() + position * head_dim;
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

}  // namespace flashshard
