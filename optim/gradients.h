// Where a rank's gradients live: what the model's backward writes, and what the reduction leaves
// for the update. Stages 0 and 1 hold the former whole, and LAST reduces it in place unless the sum
// is wider. From stage 2 on a layer's gradients live in a slot that every layer shares until they
// are packed for their reduction, with release at every stage; a tied table's, which the head and
// the embedding both add to, have memory of their own.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "optim/buckets.h"
#include "optim/memory.h"
#include "optim/shard_layout.h"
#include "optim/shard_placement.h"
#include "optim/sharding.h"

namespace flashshard {

struct GradientFormat {
  Sharding sharding = {};
  DType model = DType::kBF16;

  /// Of what the model writes.
  DType local() const { return sharding.local_sums ? DType::kFP32 : model; }
  MemoryClass local_class() const;
  ReducedPlace reduced_place(int world_size) const;
  /// Of what the update reads.
  DType reduced(int world_size) const;
  MemoryClass reduced_class() const;
};

/// Bytes of the slot that the layers' transient gradients share, and of the tied tables' own.
struct TransientGradientBytes {
  int64_t slot = 0;
  int64_t tied = 0;
};
TransientGradientBytes transient_gradient_bytes(const ShardLayout& layout, DType dtype);

/// Bytes of the largest bucket's reduced rows that a rank holds, where they live or are decoded for
/// one bucket; otherwise 0.
int64_t reduced_bucket_bytes(const BucketPlan& plan, const ShardPlacement& placement,
                             const GradientFormat& format);

/// Bytes of the buffer of one gather of reduced gradients to the ranks that hold the same states,
/// and of one of new weights; 0 where there is none or it uses the buffers of the reductions.
int64_t gradient_gather_bytes(const BucketPlan& plan, const ShardPlacement& placement,
                              const GradientFormat& format);
int64_t weight_gather_bytes(const BucketPlan& plan, const ShardPlacement& placement,
                            const GradientFormat& format);

class Gradients {
 public:
  /// Allocates. The ledger and the plan must outlive it.
  Gradients(MemoryLedger& ledger, const BucketPlan& plan, int rank, const GradientFormat& format);

  const GradientFormat& format() const { return format_; }
  const BucketPlan& plan() const { return plan_; }
  const ShardPlacement& placement() const { return placement_; }
  ReducedPlace reduced_place() const { return place_; }
  DType reduced_dtype() const { return format_.reduced(plan_.layout().world_size()); }
  /// What the model writes, whole, by tensor; the addresses never change.
  std::span<const Tensor> local() const { return local_; }
  Tensor local_rows(int tensor, RowRange rows) const {
    return local_[static_cast<size_t>(tensor)].row_range(rows.first, rows.count);
  }
  /// What the update reads: rows that this rank holds (ShardPlacement::states); with
  /// ReducedPlace::kBucket and kPacked of the bucket last given to hold() or load().
  Tensor reduced_rows(int tensor, RowRange rows) const;
  /// kBucket, kPacked: the memory is this bucket's now.
  void hold(const Bucket& bucket);
  /// kPacked: the same, with this rank's sums decoded into it.
  void load(const Bucket& bucket);
  /// kPacked: encodes this rank's sums of the bucket held, to nearest. Where one is outside the
  /// format (NaN, infinity), all of the bucket's become NaN and stay it until the next first round.
  void store(const Bucket& bucket);

 private:
  void allocate_local(MemoryLedger& ledger);
  void allocate_reduced(MemoryLedger& ledger);

  /// Reduced rows in memory, by their first row in the whole tensor.
  struct Held {
    int64_t first_row = 0;
    Tensor rows;
  };

  const BucketPlan& plan_;
  ShardPlacement placement_;
  GradientFormat format_;
  ReducedPlace place_;
  std::vector<Tensor> local_;
  std::vector<std::vector<Held>> held_;  // by tensor, ascending
  /// kPacked: this rank's rows of a tensor.
  struct Packed {
    int64_t first_row = 0;
    Tensor high, low;  // bf16; int8, empty with AccumulatorFormat::kBF16
  };
  WeightFormat packed_format() const;
  template <class Work>
  void for_each_packed(const Bucket& bucket, const Work& work);

  Backend& backend_;
  std::vector<Packed> packed_;  // by tensor
  std::byte* bucket_memory_ = nullptr;
};

}  // namespace flashshard
