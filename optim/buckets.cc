#include "optim/buckets.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "comm/fold_reduce.h"

namespace flashshard {

BucketPlan::BucketPlan(const ShardLayout& layout, int64_t bucket_bytes, int64_t bytes_per_element)
    : layout_(layout) {
  const int64_t bucket_elements = std::max<int64_t>(bucket_bytes / bytes_per_element, 1);
  std::set<int, std::greater<>> layers;
  for (const ParameterSpec& parameter : layout.parameters()) layers.insert(parameter.layer);
  for (int layer : layers) add_layer(layer, bucket_elements);
}

void BucketPlan::add_layer(int layer, int64_t bucket_elements) {
  Bucket open{layer, {}, 0};
  const auto close = [&] {
    if (!open.segments.empty()) buckets_.push_back(std::move(open));
    open = Bucket{layer, {}, 0};
  };
  for (int t = layout_.tensors() - 1; t >= 0; --t) {
    const ParameterSpec& parameter = layout_.parameter(t);
    if (parameter.layer != layer) continue;
    if (parameter.elements() <= bucket_elements) {
      if (open.elements + parameter.elements() > bucket_elements) close();
      open.segments.push_back({t, 0, 1});
      open.elements += parameter.elements();
      continue;
    }
    close();
    // No more slices than the largest share has units: a slice is whole units.
    const int64_t largest_share =
        (layout_.units(t) + layout_.world_size() - 1) / layout_.world_size();
    const int64_t wanted = (parameter.elements() + bucket_elements - 1) / bucket_elements;
    const auto slices = static_cast<int>(std::min(wanted, largest_share));
    for (int j = 0; j < slices; ++j) {
      open.segments.push_back({t, j, slices});
      for (int r = 0; r < layout_.world_size(); ++r) {
        open.elements += elements_of(open.segments.back(), r);
      }
      close();
    }
  }
  close();
}

BucketPlan::StagingBytes BucketPlan::staging_bytes(const ShardPlacement& placement, DType wire,
                                                   const ReductionOrder& order) const {
  const int world_size = layout_.world_size();
  StagingBytes bytes;
  if (world_size == 1) return bytes;
  const auto wire_bytes = static_cast<int64_t>(size_of(wire));
  std::vector<int> everyone(static_cast<size_t>(world_size));
  std::iota(everyone.begin(), everyone.end(), 0);
  const auto owned = placement.owned_by_all();
  for (const Bucket& bucket : buckets_) {
    const auto received = static_cast<int64_t>(flashshard::staging_bytes(
        ranges(bucket, owned, wire_bytes), everyone, placement.rank(), order, wire));
    bytes.packed = std::max(bytes.packed, bucket.elements * wire_bytes);
    bytes.received = std::max(bytes.received, received);
  }
  return bytes;
}

int64_t BucketPlan::gather_bytes(std::span<const ShardRange> shards, DType dtype) const {
  int64_t most = 0;
  for (const Bucket& bucket : buckets_) {
    int64_t elements = 0;
    for (const ShardRange& range : shards) elements += elements_of(bucket, range);
    most = std::max(most, elements);
  }
  return most * static_cast<int64_t>(size_of(dtype));
}

RowRange BucketPlan::rows(const BucketSegment& segment, int rank) const {
  const UnitRange own = layout_.units_of(segment.tensor, rank);
  const int64_t begin = own.count * segment.index / segment.count;
  const int64_t end = own.count * (segment.index + 1) / segment.count;
  return layout_.rows_of_units(segment.tensor, {own.first + begin, end - begin});
}

int64_t BucketPlan::elements_of(const BucketSegment& segment, int rank) const {
  return rows(segment, rank).count * layout_.parameter(segment.tensor).cols;
}

int64_t BucketPlan::elements_of(const Bucket& bucket, int rank) const {
  int64_t elements = 0;
  for (const BucketSegment& segment : bucket.segments) elements += elements_of(segment, rank);
  return elements;
}

int64_t BucketPlan::elements_of(const Bucket& bucket, ShardRange shards) const {
  int64_t elements = 0;
  for (int s = shards.first; s < shards.end(); ++s) elements += elements_of(bucket, s);
  return elements;
}

std::vector<ByteRange> BucketPlan::ranges(const Bucket& bucket, std::span<const ShardRange> shards,
                                          int64_t bytes_per_element) const {
  std::vector<ByteRange> ranges;
  size_t offset = 0;
  for (const ShardRange& range : shards) {
    const auto size = static_cast<size_t>(elements_of(bucket, range) * bytes_per_element);
    ranges.push_back({offset, size});
    offset += size;
  }
  return ranges;
}

}  // namespace flashshard
