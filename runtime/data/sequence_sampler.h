// Training sequences: which text sequence i of a run holds depends on (seed, i) alone, never on the
// world size or on where a run was resumed.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/data/token_dataset.h"

namespace flashshard::data {

/// With L tokens and sequences of S: an epoch lays W = max(1, floor(L / S) - 1) windows of S + 1
/// tokens side by side (each shares one token with the next, so no target occurs twice), begins
/// them at a random offset in 0 ... L - 1 - W S, and visits them in a random order. Both are keyed
/// by (seed, epoch). Sequence i is number i mod W of epoch floor(i / W). The tokens outside the
/// grid, fewer than 2 S, differ from epoch to epoch.
class SequenceSampler {
 public:
  struct Options {
    uint64_t seed = 0;
    int64_t sequence_length = 0;  // S, tokens
  };
  /// `dataset` must outlive the sampler. Throws Error(kBadData) when it has fewer than S + 1
  /// tokens, Error(kUsage) when S < 1.
  SequenceSampler(const TokenDataset& dataset, const Options& options);

  int64_t sequences_per_epoch() const { return windows_; }
  int64_t sequence_length() const { return options_.sequence_length; }
  /// Position in the split of the first token of sequence i; i >= 0.
  int64_t position(int64_t sequence) const;
  /// inputs, targets: (count, S). Targets are the inputs shifted by one. Sequences first ... first
  /// + count - 1. Throws like TokenDataset::read. May be called from several threads at once.
  void fill(int64_t first_sequence, int64_t count, std::span<int32_t> inputs,
            std::span<int32_t> targets) const;

 private:
  const TokenDataset& dataset_;
  Options options_;
  int64_t windows_;
};

}  // namespace flashshard::data
