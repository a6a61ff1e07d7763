// The table of rotary position embeddings (RoFormer, arXiv 2104.09864), and the scaling of its
// frequencies with which Llama 3.1 reads longer texts than it was first trained on ("The Llama 3
// Herd of Models", arXiv 2407.21783; Hugging Face's rope type "llama3").
#pragma once

#include <cstdint>
#include <vector>

namespace flashshard {

/// Slow frequencies are divided by `factor`, fast ones stay: those that turn less than
/// `low_frequency_factor` times over the original positions, more than `high_frequency_factor`
/// times; between the two the frequency is a mean of both, weighted by the number of turns.
struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLlama3 };
  Kind kind = Kind::kNone;
  double factor = 8;  // >= 1
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;  // > low_frequency_factor
  int64_t original_positions = 8192;
};

/// The D/2 angles, in radians, by which one position turns the pairs of a head: f_i = theta^(-2i/D)
/// or, scaled,
///   f_i (s + (1 - s) / factor),  s = clamp((original f_i / 2 pi - low) / (high - low), 0, 1).
std::vector<double> rope_frequencies(int head_dim, double theta, const RopeScaling& scaling);

/// (positions, head_dim) fp32: cosines then sines of position * frequency, D/2 each. Computed in
/// double and rounded once, so that late positions lose nothing to an fp32 angle.
std::vector<float> rope_table(int64_t positions, int head_dim, double theta,
                              const RopeScaling& scaling = {});

}  // namespace flashshard
