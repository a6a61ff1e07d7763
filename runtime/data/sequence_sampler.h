// Training sequences by number: inputs and targets of the sequences that a run consumes, in
// SequenceOrder.
#pragma once

#include <cstdint>

#include "runtime/data/sequence_order.h"
#include "runtime/data/token_dataset.h"

namespace flashshard::data {

/// Immutable; members may be called from several threads at once.
class SequenceSampler {
 public:
  struct Options {
    uint64_t seed = 0;
    int64_t sequence_length = 0;  // S, tokens
  };
  /// `dataset` must outlive the sampler. Throws Error(kBadData) when it has fewer than S + 1
  /// tokens, Error(kUsage) when S < 1.
  SequenceSampler(const TokenDataset& dataset, const Options& options);

  const SequenceOrder& order() const { return order_; }
  int64_t sequence_length() const { return sequence_length_; }
  /// Sequences first ... first + count - 1 of the run into buffers of (count, S). Targets are the
  /// inputs shifted by one, -1 where the loss mask hides one. Throws like
  /// TokenDataset::read_window.
  void fill(int64_t first_sequence, int64_t count, const SequenceBuffers& buffers) const;

 private:
  const TokenDataset& dataset_;
  int64_t sequence_length_;
  SequenceOrder order_;
};

}  // namespace flashshard::data
