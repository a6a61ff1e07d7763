// One step's forwards and backwards on this rank, with the gathers and reductions that they hide.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/data/micro_batch_schedule.h"
#include "runtime/data/prefetcher.h"
#include "runtime/engine.h"
#include "runtime/model/model.h"

namespace flashshard {

/// How a step's M micro-batches stand on N ranks.
struct StepShape {
  int64_t micro_batches = 1;  // M
  int world_size = 1;         // N
  int rank = 0;

  /// The most that any rank has.
  int64_t rounds() const { return (micro_batches + world_size - 1) / world_size; }
  /// Ranks 0, 1, ... that have a k-th one.
  int contributors(int64_t k) const;
  int64_t own() const;  // of this rank
};

/// Times are milliseconds; communication is not part of forward and backward.
struct PassResult {
  std::vector<LossResult> losses;  // of this rank's micro-batches
  int64_t tokens = 0;              // counted in them
  double data_ms = 0, forward_ms = 0, backward_ms = 0;
};

class GradientPass {
 public:
  /// Both must outlive it.
  GradientPass(Engine& engine, data::Prefetcher& prefetcher, const StepShape& shape,
               int64_t sequence_length)
      : engine_(engine),
        prefetcher_(prefetcher),
        shape_(shape),
        sequence_length_(sequence_length) {}

  /// Leaves the step's gradients to ShardedOptimizer::step, with release all but its end.
  /// Collective.
  PassResult run(double learning_rate);

 private:
  Round round(int64_t k) const;
  bool reduces(int64_t k) const;
  void micro_batch(int64_t k, const data::MicroBatch& batch, PassResult& result);
  void without_micro_batch();
  const data::MicroBatch& next_micro_batch();

  Engine& engine_;
  data::Prefetcher& prefetcher_;
  StepShape shape_;
  int64_t sequence_length_;
};

}  // namespace flashshard
