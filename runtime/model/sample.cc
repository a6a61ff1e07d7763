#include "runtime/model/sample.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/error.h"
#include "kernels/numerics/random_values.h"

namespace flashshard {
namespace {

// Tensor numbers are small; this key's sequence is shared with no initial weight.
constexpr uint64_t kSamplingStream = uint64_t{1} << 63;

/// Uniform in [0, 1) in steps of 2^-53.
double uniform(uint64_t seed, uint64_t position) {
  const numerics::RandomKey key{.seed = seed, .tensor = kSamplingStream};
  const uint64_t high = numerics::random_bits(key, 2 * position);
  const uint64_t low = numerics::random_bits(key, 2 * position + 1);
  return static_cast<double>((high << 32 | low) >> 11) * 0x1p-53;
}

void check(std::span<const float> logits, double temperature) {
  if (logits.empty()) throw Error(ExitCode::kInternal, "no logits to sample from", "sample_token");
  if (!std::isfinite(temperature) || temperature < 0) {
    throw Error(ExitCode::kUsage, fmt::format("a temperature of {} is out of range", temperature),
                "--temperature", "give 0 for the likeliest token or a positive number, e.g. 0.8");
  }
}

}  // namespace

int32_t sample_token(std::span<const float> logits, const SamplingOptions& options,
                     uint64_t position) {
  check(logits, options.temperature);
  // A score of -infinity excludes its token; NaN and +infinity mean a broken model.
  const bool broken = std::ranges::any_of(
      logits, [](float x) { return std::isnan(x) || (std::isinf(x) && x > 0); });
  const auto best = std::ranges::max_element(logits);
  if (broken || std::isinf(*best)) {
    throw Error(ExitCode::kNonFinite, "the model's scores are not finite", "sample_token",
                "the weights are damaged or training has diverged; use an earlier checkpoint");
  }
  if (options.temperature == 0) return static_cast<int32_t>(best - logits.begin());

  std::vector<double> weights(logits.size());
  double sum = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    // Relative to the best score: no exponential overflows, the best one weighs exactly 1.
    weights[i] = std::exp((double{logits[i]} - double{*best}) / options.temperature);
    sum += weights[i];
  }
  double remaining = uniform(options.seed, position) * sum;
  size_t chosen = static_cast<size_t>(best - logits.begin());
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] == 0) continue;
    chosen = i;
    remaining -= weights[i];
    if (remaining < 0) break;
  }
  return static_cast<int32_t>(chosen);
}

}  // namespace flashshard
