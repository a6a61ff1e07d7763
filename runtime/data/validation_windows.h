// Held-out text in fixed windows: the same sequences in the same order whatever the seed, step or
// world size.
#pragma once

#include <cstdint>

#include "runtime/data/token_dataset.h"

namespace flashshard::data {

/// With L tokens and windows of S inputs: window w holds inputs w S ... w S + S - 1 and the tokens
/// after them as targets; the last window is short and its rest is masked. Every token but the
/// first is a target exactly once, hidden where the data set's loss mask says so.
class ValidationWindows {
 public:
  struct Options {
    int64_t sequence_length = 0;  // S, tokens
    int64_t most_sequences =
        0;  // 0: the whole split. Otherwise that many windows, evenly spaced over it
  };
  static constexpr int32_t kPaddingInput = 0;

  /// `dataset` must outlive the object. Throws Error(kBadData) when it has fewer than 2 tokens,
  /// Error(kUsage) for options out of range.
  ValidationWindows(const TokenDataset& dataset, const Options& options);

  /// Windows to evaluate.
  int64_t size() const { return selected_; }
  int64_t sequence_length() const { return options_.sequence_length; }
  /// Targets in all of them that lie in the text; a loss mask may hide some.
  int64_t target_count() const;
  /// Buffers of (count, S). Rows past size() are all padding with masked targets, so that ranks may
  /// hold equally many; padding is a document of its own. Returns the targets not masked. Throws
  /// like TokenDataset::read_window.
  int64_t fill(int64_t first_sequence, int64_t count, const SequenceBuffers& buffers) const;

 private:
  int64_t fill_row(int64_t sequence, const SequenceBuffers& row) const;
  int64_t window(int64_t sequence) const;
  int64_t targets_in(int64_t sequence) const;

  const TokenDataset& dataset_;
  Options options_;
  int64_t windows_;   // in the whole split
  int64_t selected_;  // of them evaluated
};

}  // namespace flashshard::data
