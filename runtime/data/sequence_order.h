// The order of training sequences: which stretch of the text sequence i of a run holds. A function
// of (seed, i) alone, so it is the same for every world size and wherever a run was resumed.
#pragma once

#include <cstdint>

namespace flashshard::data {

/// With L tokens and sequences of S: an epoch lays W = max(1, floor(L / S) - 1) windows of S + 1
/// tokens side by side (each shares one token with the next, so no target occurs twice), begins
/// them at a random offset in 0 ... L - 1 - W S, and visits them in a random order. Both are keyed
/// by (seed, epoch). Sequence i is number i mod W of epoch floor(i / W). The tokens outside the
/// grid, fewer than 2 S, differ from epoch to epoch.
class SequenceOrder {
 public:
  struct Options {
    int64_t token_count = 0;      // L
    int64_t sequence_length = 0;  // S, tokens
    uint64_t seed = 0;
  };
  /// 1 <= S < L.
  explicit SequenceOrder(const Options& options);

  /// W.
  int64_t sequences_per_epoch() const { return windows_; }
  /// Position in the text of the first token of sequence i; i >= 0.
  int64_t position(int64_t sequence) const;

 private:
  Options options_;
  int64_t windows_;
};

}  // namespace flashshard::data
