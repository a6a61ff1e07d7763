// How training state is divided among ranks, when gradients meet and when weights change
// (docs/sharding.md). What can be combined with what stands in legality.h.
#pragma once

#include <cstdint>

namespace flashshard {

enum class ReduceTime : uint8_t {
  kLast,  // micro-batches of a step are summed locally and reduced once
  kEach,  // every micro-batch is reduced, into an accumulator of each owner's rows
};

/// What ReduceTime::kEach sums in.
enum class AccumulatorFormat : uint8_t {
  kFP32,
  kBF16,   // rounded to nearest once a round
  kSplit,  // bf16 and 8 bits below it: 24 bits
  /// The moments of AdamW themselves, micro-batch by micro-batch (AdamA, arXiv 2305.19982).
  kMoments,
};

enum class ClipMode : uint8_t {
  kGlobal,    // by the norm of this step's whole gradient
  kPrevious,  // by the norm of the gradient that was applied before this one
  kBucket,    // each bucket by its own norm
};

/// Where the update finds the reduced gradient.
enum class ReducedPlace : uint8_t {
  kLocal,   // in the place of the rank's own gradient
  kMemory,  // in memory of its own: the rows whose states this rank holds
  kBucket,  // in memory for one bucket, which is updated at once
  kPacked,  // in an accumulator of fewer bits, decoded into memory for one bucket
};

struct Sharding {
  int stage = 1;  // ZeRO: 0 divides nothing, 1 the states, 2 gradients too, 3 weights too
  /// Ranks that divide it among them, every so many consecutive ones for themselves; 0: all.
  int group = 0;
  bool uneven_groups = false;  // they do not divide the number of ranks
  ReduceTime reduce = ReduceTime::kLast;
  AccumulatorFormat accumulator = AccumulatorFormat::kFP32;
  bool fp32_reduced_gradient = false;  // the reduced sum is kept; otherwise rounded once to bf16
  bool fp32_state = false;             // of every tensor
  bool adamw = true;                   // every tensor's rule
  bool v1_weights = false;             // FLASHOPTIM_V1's: encoding one again may change its bits
  /// Several micro-batches of a rank are summed locally, in fp32, before the one reduction.
  bool local_sums = false;
  /// A bucket is updated inside backward as soon as it is reduced.
  bool release = false;
  bool clips = true;  // by `clip`
  ClipMode clip = ClipMode::kGlobal;
  bool skips_buckets = false;  // a non-finite gradient skips its bucket, otherwise the step
  bool two_level = false;      // ranks are summed in groups first
  bool reproducible = false;   // the bits do not depend on the number of ranks

  bool divides_states() const { return stage >= 1; }
  bool divides_gradients() const { return stage >= 2; }
  bool divides_weights() const { return stage >= 3; }
  bool reduces_each() const { return reduce == ReduceTime::kEach; }
  bool goes_into_moments() const {
    return reduces_each() && accumulator == AccumulatorFormat::kMoments;
  }
  bool has_accumulator() const { return reduces_each() && !goes_into_moments(); }
  /// The model's gradients are whole and stay until the update; otherwise they live until their
  /// layer is reduced.
  bool keeps_local_gradients() const { return !divides_gradients() && !release; }
  /// New weights are gathered while gradients are reduced.
  bool gathers_weights_in_backward() const {
    return release && divides_states() && !divides_weights();
  }
  int ranks_of_a_group(int world_size) const {
    if (!divides_states()) return 1;
    return group == 0 ? world_size : group;
  }
};

}  // namespace flashshard
