// The ZeRO step, stages 0 to 3. One step is
//
//   reduce  (K1)  bucket by bucket as backward makes layers final: each rank ends with the fp32 sum
//                 of its own rows, folded over ranks 0, 1, ... (docs/sharding.md), and their exact
//                 squares; with ReduceTime::kEach once for every micro-batch, into an accumulator
//   agree         one small integer reduction: squares, non-finite count, tokens -> clip
//                 coefficient, the same bits everywhere
//   update  (K2)  bucket by bucket: the rule changes the rows whose states the rank holds. Where
//                 several ranks hold the same states, at stage 0 and with groups
//                 (shard_placement.h), they gather the reduced gradients before, while others are
//                 reduced; stages 1 and 2 gather the new weights, which the next forward waits for
//                 layer by layer; stage 3 leaves that to its passes (gathered_weights.h)
//
// A step with a non-finite gradient changes no byte of state on any rank. Every stage ends with the
// same bits.
//
// With release the last two happen bucket by bucket inside backward, as soon as a bucket is
// reduced, and no gradient outlives its bucket: then clipping is by an earlier norm or the bucket's
// own, and a non-finite gradient skips its bucket. With AccumulatorFormat::kMoments every round
// does so, and the last one's updates change the weights.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "comm/reduction_order.h"
#include "kernels/backend.h"
#include "optim/bucket_gather.h"
#include "optim/buckets.h"
#include "optim/gathered_weights.h"
#include "optim/gradients.h"
#include "optim/memory.h"
#include "optim/reduction.h"
#include "optim/shard_groups.h"
#include "optim/sharded_state.h"
#include "optim/update_rule.h"

namespace flashshard {

struct ShardedOptimizerOptions {
  double clip_norm = 1.0;     // of the mean gradient; 0 = no clipping
  DType wire = DType::kBF16;  // of gradients between ranks; fp32 with an fp32 model
  ReductionOrder order = {};  // of the sum over ranks
};

/// What an optimizer step did. Norms are of the mean gradient (sum over tokens / token count),
/// before clipping.
struct StepOutcome {
  double gradient_norm = 0;     // inf when non-finite; kMoments: root of the rounds' squares
  double clip_coefficient = 1;  // the smallest of any bucket's
  int64_t tokens = 0;           // over all ranks
  int64_t nonfinite_groups = 0;
  int64_t skipped_buckets = 0;  // with release; kMoments: of every round
  bool applied = false;         // false: skipped, no state byte changed
  double reduce_ms = 0, update_ms = 0, gather_ms = 0;
  double held_ms = 0;  // what updates waited for before they began (set_before_update)
};

/// What ranks agree on about gradients.
struct GradientSums {
  std::array<int64_t, 10> limbs = {};  // exact squares
  int64_t nonfinite_groups = 0;
  int64_t tokens = 0;

  /// Of the gradient divided by so many tokens.
  double mean_norm(int64_t all_tokens) const;
};

class ShardedOptimizer {
 public:
  /// All referenced objects must outlive it. `gradients` and `state` share one Sharding, which must
  /// be legal. Staging for buckets and gathered layers are allocated here.
  ShardedOptimizer(ShardGroups& groups, MemoryLedger& ledger, ShardedState& state,
                   Gradients& gradients, UpdateRule& rule, const ShardedOptimizerOptions& options);
  ShardedOptimizer(const ShardedOptimizer&) = delete;
  ShardedOptimizer& operator=(const ShardedOptimizer&) = delete;

  /// Fresh weights: `values(tensor, rows, out)` writes fp32 values of the rows this rank owns;
  /// encoded, then shared.
  using InitialValues = std::function<void(int tensor, RowRange rows, std::span<float> out)>;
  void initialize(const InitialValues& values);
  /// Brings the owners' rows to every rank that holds them too (after a checkpoint was loaded into
  /// the shards). Collective.
  void share_state();

  /// The whole weights that a model reads: fixed addresses.
  std::vector<Tensor> model_weights() const;
  /// Every pass over the model begins with begin_pass() and announces its layers by before_layer()
  /// (LayerHooks), on every rank in the same order, with a micro-batch or without: then the layer's
  /// weights are there. Stages 1 and 2 finish the gathers that the last step began, stage 3 gathers
  /// layer by layer.
  void begin_pass(bool backward_follows);
  void before_layer(int layer);

  /// Weights may still be on their way after step(): waits for them. Collective.
  void finish_gathers();

  /// Starts a reduction of every bucket. A step has one, with ReduceTime::kEach one per
  /// micro-batch.
  void begin_round(const Round& round);
  /// This layer's gradients are final on this rank: fills its buckets and starts their reduction.
  /// Every rank calls it for every layer, in backward order, contributors or not.
  void layer_ready(int layer);
  /// Called before an update changes this rank's own rows of a bucket, weights and states: who
  /// still reads them keeps it waiting. Nothing else changes them between two steps.
  void set_before_update(std::function<void(const Bucket&)> before) {
    before_update_ = std::move(before);
  }
  /// Ends the step. `local_tokens` is what this rank's gradients sum over.
  StepOutcome step(double learning_rate, int64_t local_tokens);

  /// Applied updates: bias correction and rounding keys count these. Stored in checkpoints.
  uint64_t updates() const { return updates_; }
  void set_updates(uint64_t updates) { updates_ = updates; }
  /// Of the gradient last applied, which ClipMode::kPrevious clips by; 0: there is none. Stored in
  /// checkpoints.
  double previous_norm() const { return previous_norm_; }
  void set_previous_norm(double norm) { previous_norm_ = norm; }
  /// Groups of 32 on this rank that an update left untouched since construction, their new values
  /// being outside the format.
  int64_t rejected_groups() const { return rejected_groups_; }
  /// What the last step's update did to the sampled groups of this rank; zeros after a skipped one.
  const UpdateHealth& health() const { return health_; }

  const BucketPlan& buckets() const { return plan_; }

 private:
  void reduced(const Bucket& bucket);
  void add_own(const Bucket& bucket, GradientSums& sums);
  GradientSums agree(const GradientSums& own);
  double clip_coefficient(double norm) const;

  StepFactors factors(double learning_rate, double gradient_factor, uint64_t t);
  StepOutcome step_at_once(double learning_rate);
  void update(const StepFactors& factors, StepOutcome* outcome);
  void gather_gradients(const Bucket& bucket);
  std::vector<ShardSlice> slices(const Bucket& bucket) const;
  void hold(const Bucket& bucket);

  // release.cc
  void begin_release(const Round& round);
  void release(const Bucket& bucket);
  void release_round(const Bucket& bucket, const GradientSums& all);
  void apply_released(const Bucket& bucket, const StepFactors& factors);
  StepOutcome finish_release();
  /// Milliseconds that stand in a reduction's time and are no part of it.
  double released_ms() const;
  double take_gather_ms();

  void make_gathers(MemoryLedger& ledger);
  BucketGather gather_of_weights(Communicator& communicator, std::vector<ShardRange> shards,
                                 const StagingPairs& staging) const;
  void share_with_replicas();

  /// A step with release, from its last round on; with AccumulatorFormat::kMoments from its first.
  struct Release {
    double learning_rate = 0;
    int64_t tokens = 0;         // over all ranks
    int64_t round_tokens = 0;   // of these in the round
    std::vector<bool> changed;  // by bucket: its moments have a round of this step
    bool applied = false;
    StepOutcome outcome;
  };

  Communicator& communicator_;
  Backend& backend_;
  ShardedState& state_;
  Gradients& gradients_;
  UpdateRule& rule_;
  ShardedOptimizerOptions options_;
  Sharding sharding_;
  const BucketPlan& plan_;
  const ShardPlacement& placement_;
  ShardGroups& groups_;
  StagingPairs staging_;
  BucketReducer reducer_;
  std::optional<BucketGather> gradient_gather_;  // to the ranks that hold the same states
  std::optional<BucketGather> weight_gather_;    // stages 1 and 2
  std::optional<GatheredWeights> gathered_;      // stage 3

  Round round_;
  size_t next_bucket_ = 0;
  uint64_t updates_ = 0;
  double previous_norm_ = 0;
  int64_t rejected_groups_ = 0;
  UpdateHealth health_, counting_;  // of the last step, and of the one under way
  double reduce_ms_ = 0;
  std::function<void(const Bucket&)> before_update_;
  double held_ms_ = 0;  // of the step
  GradientSums sums_;   // of the step: this rank's; with release all ranks'
  Release release_;
};

}  // namespace flashshard
