// Buckets: the unit of reduction, update, gather and release. Runs of tensors within one
// layer, in backward order, closed at `bucket_bytes`. A larger tensor is cut so that bucket j holds
// the j-th slice of *every* rank's own range: all ranks stay equally busy and ownership is
// unchanged.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "comm/reduction_order.h"
#include "kernels/tensor.h"
#include "optim/shard_layout.h"
#include "optim/shard_placement.h"

namespace flashshard {

/// Slice `index` of `count` of every rank's own units of one tensor.
struct BucketSegment {
  int tensor = 0;
  int index = 0;
  int count = 1;
};

struct Bucket {
  int layer = 0;
  std::vector<BucketSegment> segments;
  int64_t elements = 0;  // over all ranks
};

class BucketPlan {
 public:
  /// `bytes_per_element` of what travels (2 for bf16). bucket_bytes > 0. `layout` must outlive the
  /// plan.
  BucketPlan(const ShardLayout& layout, int64_t bucket_bytes, int64_t bytes_per_element);

  const ShardLayout& layout() const { return layout_; }
  /// In backward order: the last layer's first.
  const std::vector<Bucket>& buckets() const { return buckets_; }
  /// Bytes of the buffers of one reduction on a rank; two are in flight at once. Nothing for a rank
  /// alone.
  struct StagingBytes {
    int64_t packed = 0;    // a whole bucket
    int64_t received = 0;  // what a reduction in `order` stages (FoldReduction)
  };
  StagingBytes staging_bytes(const ShardPlacement& placement, DType wire,
                             const ReductionOrder& order = {}) const;
  /// Bytes of the buffer of one gather to which each rank brings so many shards.
  int64_t gather_bytes(std::span<const ShardRange> shards, DType dtype) const;

  /// Rows of a segment that `rank` owns.
  RowRange rows(const BucketSegment& segment, int rank) const;
  int64_t elements_of(const BucketSegment& segment, int rank) const;
  /// All segments of a bucket that `rank` owns, packed one behind the other.
  int64_t elements_of(const Bucket& bucket, int rank) const;
  int64_t elements_of(const Bucket& bucket, ShardRange shards) const;
  /// ranges[i]: the packed rows of shards[i] when all stand one behind the other.
  std::vector<ByteRange> ranges(const Bucket& bucket, std::span<const ShardRange> shards,
                                int64_t bytes_per_element) const;

 private:
  void add_layer(int layer, int64_t bucket_elements);

  const ShardLayout& layout_;
  std::vector<Bucket> buckets_;
};

}  // namespace flashshard
