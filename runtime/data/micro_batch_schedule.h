// Which micro-batches of the global order a rank computes.
#pragma once

#include <cstdint>

namespace flashshard::data {

/// A step consumes `global_batch` sequences as M = global_batch / micro_batch micro-batches.
/// Micro-batch k N + r of the step is rank r's k-th (N = world size), so the ranks of one round
/// hold neighbours and, where N does not divide M, the last round leaves the last ranks without
/// one.
class MicroBatchSchedule {
 public:
  struct Options {
    int64_t global_batch = 0;  // sequences a step
    int64_t micro_batch = 0;   // sequences; divides global_batch
    int rank = 0;
    int world_size = 1;
    int64_t first_sequence = 0;  // sequences the run has consumed; a step begins here
  };
  /// Throws Error(kUsage) when a number is out of range, global_batch is no multiple of
  /// micro_batch, or a step has no micro-batch for this rank (world_size > M).
  explicit MicroBatchSchedule(const Options& options);

  /// Micro-batches of this rank in every step.
  int64_t micro_batches_per_step() const { return per_step_; }
  int64_t micro_batch() const { return options_.micro_batch; }
  /// First sequence of this rank's k-th micro-batch, counted from `first_sequence` on over all
  /// steps.
  int64_t operator()(int64_t k) const;

 private:
  Options options_;
  int64_t per_step_ = 0;
};

}  // namespace flashshard::data
