// Choosing the next token from a model's scores.
#pragma once

#include <cstdint>
#include <span>

namespace flashshard {

struct SamplingOptions {
  double temperature = 1.0;  // 0: the highest score, the lowest token id among equals
  uint64_t seed = 0;
};

/// A token drawn with probability softmax(logits / temperature); the draw depends on (seed,
/// position, logits) alone. `position`: index of the token in its text. Throws Error(kUsage) on a
/// negative or non-finite temperature and Error(kNonFinite) on logits that are not numbers.
int32_t sample_token(std::span<const float> logits, const SamplingOptions& options,
                     uint64_t position);

}  // namespace flashshard
