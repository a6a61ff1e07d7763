// ZeRO-1: every rank holds whole weights and gradients, and the optimizer state of its own rows.
// One step is
//
//   reduce  (K1)  bucket by bucket as backward makes layers final: each rank ends with the fp32 sum
//   of its own rows, folded
//                 over ranks 0, 1, ... (docs/sharding.md), and their exact squares
//   agree         one small integer reduction: squares, non-finite count, tokens -> clip
//   coefficient, the same bits everywhere update + gather (K2)  bucket by bucket: the rule changes
//   the shard; its new weight rows go to every rank
//
// A step with a non-finite gradient changes no byte of state on any rank.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "comm/reduction_order.h"
#include "kernels/backend.h"
#include "optim/buckets.h"
#include "optim/memory.h"
#include "optim/sharded_state.h"
#include "optim/update_rule.h"

namespace flashshard {

struct ShardedOptimizerOptions {
  int64_t bucket_bytes = 64 << 20;
  double clip_norm = 1.0;     // of the mean gradient; 0 = no clipping
  DType wire = DType::kBF16;  // of gradients between ranks; fp32 with an fp32 model
  ReductionOrder order;       // of the sum over ranks
};

/// What an optimizer step did. Norms are of the mean gradient (sum over tokens / token count),
/// before clipping.
struct StepOutcome {
  double gradient_norm = 0;  // inf when non-finite
  double clip_coefficient = 1;
  int64_t tokens = 0;  // over all ranks
  int64_t nonfinite_groups = 0;
  bool applied = false;  // false: skipped, no state byte changed
  double reduce_ms = 0, update_ms = 0, gather_ms = 0;
};

class ShardedOptimizer {
 public:
  /// `gradients[t]`: whole gradient of tensor t, bf16 or fp32 (local accumulation). All referenced
  /// objects must outlive it. Staging for buckets is allocated here, class `buckets`.
  ShardedOptimizer(Communicator& communicator, MemoryLedger& ledger, ShardedState& state,
                   std::span<const Tensor> gradients, UpdateRule& rule,
                   const ShardedOptimizerOptions& options);

  /// Fresh weights: `values(tensor, rows, out)` writes fp32 values of the rows this rank owns;
  /// encoded, then gathered.
  using InitialValues = std::function<void(int tensor, RowRange rows, std::span<float> out)>;
  void initialize(const InitialValues& values);
  /// Brings the owners' weight rows to every rank (after a checkpoint was loaded into the shards).
  void gather_weights();

  /// Starts a step in which ranks 0 .. contributors-1 hold gradients; the others' are skipped, not
  /// added as zero.
  void begin_step(int contributors);
  /// This layer's gradients are final on this rank: fills and reduces its buckets. Every rank calls
  /// it for every layer, in backward order, contributors or not.
  void layer_ready(int layer);
  /// Ends the step. `local_tokens` is what this rank's gradients sum over.
  StepOutcome step(double learning_rate, int64_t local_tokens);

  /// Applied updates: bias correction and rounding keys count these. Stored in checkpoints.
  uint64_t updates() const { return updates_; }
  void set_updates(uint64_t updates) { updates_ = updates; }
  /// Groups of 32 on this rank that an update left untouched since construction, their new values
  /// being outside the format.
  int64_t rejected_groups() const { return rejected_groups_; }

  const BucketPlan& buckets() const { return plan_; }

 private:
  void reduce(const Bucket& bucket);
  void pack_gradients(const Bucket& bucket, std::byte* packed);
  std::vector<ShardSlice> own_slices(const Bucket& bucket) const;
  Tensor own_gradient(const BucketSegment& segment) const;
  Pending start_gather(const Bucket& bucket, std::byte* staging);
  void finish_gather(const Bucket& bucket, const std::byte* staging);
  template <class Update>
  void update_and_gather(const Update& update, StepOutcome* outcome);

  Communicator& communicator_;
  Backend& backend_;
  ShardedState& state_;
  std::vector<Tensor> gradients_;
  UpdateRule& rule_;
  ShardedOptimizerOptions options_;
  BucketPlan plan_;
  std::array<std::span<std::byte>, 2> staging_;  // a reduction's two ends; or two gathers in flight

  int contributors_ = 0;
  size_t next_bucket_ = 0;
  uint64_t updates_ = 0;
  double reduce_ms_ = 0;
  std::array<int64_t, 10> limbs_ = {};
  int64_t nonfinite_groups_ = 0;
  int64_t rejected_groups_ = 0;
};

}  // namespace flashshard
