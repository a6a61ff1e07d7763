#include "optim/gradients.h"

#include <algorithm>
#include <map>

#include "kernels/error.h"

namespace flashshard {
namespace {

int64_t slot_bytes_of(const ParameterSpec& parameter, DType dtype) {
  const int64_t bytes = parameter.elements() * static_cast<int64_t>(size_of(dtype));
  return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

bool is_tied(const ParameterSpec& parameter) { return !parameter.tied_names.empty(); }

}  // namespace

MemoryClass GradientFormat::local_class() const {
  if (!sharding.keeps_local_gradients()) return MemoryClass::kBuckets;
  return local() == model ? MemoryClass::kGradients : MemoryClass::kAccumulator;
}

ReducedPlace GradientFormat::reduced_place(int world_size) const {
  if (sharding.has_accumulator()) {
    const bool fp32 = sharding.accumulator == AccumulatorFormat::kFP32;
    return fp32 ? ReducedPlace::kMemory : ReducedPlace::kPacked;
  }
  if (sharding.release) return world_size == 1 ? ReducedPlace::kLocal : ReducedPlace::kBucket;
  // One rank's sum is its gradient, which needs no more bits.
  const bool widens = sharding.fp32_reduced_gradient && local() != DType::kFP32 && world_size > 1;
  return sharding.divides_gradients() || widens ? ReducedPlace::kMemory : ReducedPlace::kLocal;
}

DType GradientFormat::reduced(int world_size) const {
  if (reduced_place(world_size) == ReducedPlace::kLocal) return local();
  return sharding.reduces_each() || sharding.fp32_reduced_gradient ? DType::kFP32 : model;
}

MemoryClass GradientFormat::reduced_class() const {
  return sharding.has_accumulator() ? MemoryClass::kAccumulator : MemoryClass::kGradients;
}

TransientGradientBytes transient_gradient_bytes(const ShardLayout& layout, DType dtype) {
  TransientGradientBytes bytes;
  std::map<int, int64_t> layers;
  for (const ParameterSpec& parameter : layout.parameters()) {
    if (is_tied(parameter)) {
      bytes.tied += parameter.elements() * static_cast<int64_t>(size_of(dtype));
    } else {
      layers[parameter.layer] += slot_bytes_of(parameter, dtype);
    }
  }
  for (const auto& [layer, layer_bytes] : layers) bytes.slot = std::max(bytes.slot, layer_bytes);
  return bytes;
}

int64_t reduced_bucket_bytes(const BucketPlan& plan, const ShardPlacement& placement,
                             const GradientFormat& format) {
  const int world_size = plan.layout().world_size();
  const ReducedPlace place = format.reduced_place(world_size);
  if (place != ReducedPlace::kBucket && place != ReducedPlace::kPacked) return 0;
  int64_t elements = 0;
  for (const Bucket& bucket : plan.buckets()) {
    elements = std::max(elements, plan.elements_of(bucket, placement.states()));
  }
  return elements * static_cast<int64_t>(size_of(format.reduced(world_size)));
}

int64_t gradient_gather_bytes(const BucketPlan& plan, const ShardPlacement& placement,
                              const GradientFormat& format) {
  if (placement.replicas() == 1) return 0;
  return plan.gather_bytes(placement.owned_by_replicas(), format.reduced(placement.world_size()));
}

int64_t weight_gather_bytes(const BucketPlan& plan, const ShardPlacement& placement,
                            const GradientFormat& format) {
  if (placement.group() == 1 || !format.sharding.gathers_weights_in_backward()) return 0;
  return plan.gather_bytes(placement.held_by_group(), format.model);
}

Gradients::Gradients(MemoryLedger& ledger, const BucketPlan& plan, int rank,
                     const GradientFormat& format)
    : plan_(plan),
      placement_(format.sharding, plan.layout().world_size(), rank),
      format_(format),
      place_(format.reduced_place(plan.layout().world_size())),
      held_(static_cast<size_t>(plan.layout().tensors())),
      backend_(ledger.backend()) {
  allocate_local(ledger);
  allocate_reduced(ledger);
}

void Gradients::allocate_local(MemoryLedger& ledger) {
  const ShardLayout& layout = plan_.layout();
  const DType dtype = format_.local();
  const bool whole = format_.sharding.keeps_local_gradients();
  std::byte* slot = nullptr;
  if (!whole) {
    const auto bytes = static_cast<size_t>(transient_gradient_bytes(layout, dtype).slot);
    slot = static_cast<std::byte*>(ledger.allocate(format_.local_class(), bytes));
  }
  std::map<int, int64_t> used;  // bytes of the slot, by layer
  for (const ParameterSpec& parameter : layout.parameters()) {
    if (whole || is_tied(parameter)) {
      local_.push_back(
          ledger.tensor(format_.local_class(), dtype, {parameter.rows, parameter.cols}));
      continue;
    }
    int64_t& offset = used[parameter.layer];
    local_.emplace_back(slot + offset, dtype,
                        std::initializer_list<int64_t>{parameter.rows, parameter.cols});
    offset += slot_bytes_of(parameter, dtype);
  }
}

void Gradients::allocate_reduced(MemoryLedger& ledger) {
  const auto bytes = static_cast<size_t>(reduced_bucket_bytes(plan_, placement_, format_));
  bucket_memory_ = static_cast<std::byte*>(ledger.allocate(MemoryClass::kBuckets, bytes));
  const ShardLayout& layout = plan_.layout();
  for (int t = 0; t < layout.tensors(); ++t) {
    const ParameterSpec& parameter = layout.parameter(t);
    if (place_ == ReducedPlace::kPacked) {
      const RowRange own = layout.rows_of(t, placement_.own());
      Packed packed;
      packed.first_row = own.first;
      packed.high =
          ledger.tensor(MemoryClass::kAccumulator, DType::kBF16, {own.count, parameter.cols});
      if (format_.sharding.accumulator == AccumulatorFormat::kSplit) {
        packed.low =
            ledger.tensor(MemoryClass::kAccumulator, DType::kINT8, {own.count, parameter.cols});
      }
      packed_.push_back(packed);
    }
    if (place_ != ReducedPlace::kMemory) continue;
    const RowRange rows = layout.rows_of(t, placement_.states());
    held_[static_cast<size_t>(t)] = {
        {rows.first,
         ledger.tensor(format_.reduced_class(), reduced_dtype(), {rows.count, parameter.cols})}};
  }
}

WeightFormat Gradients::packed_format() const {
  return format_.sharding.accumulator == AccumulatorFormat::kSplit ? WeightFormat::kSplit24
                                                                   : WeightFormat::kBF16;
}

/// `work(values, high, low)` of this rank's rows of every segment: fp32 in the bucket's memory, and
/// their places in the accumulator.
template <class Work>
void Gradients::for_each_packed(const Bucket& bucket, const Work& work) {
  for (const BucketSegment& segment : bucket.segments) {
    const RowRange rows = plan_.rows(segment, placement_.own());
    if (rows.count == 0) continue;
    const Packed& packed = packed_[static_cast<size_t>(segment.tensor)];
    const int64_t first = rows.first - packed.first_row;
    work(reduced_rows(segment.tensor, rows), packed.high.row_range(first, rows.count),
         packed.low ? packed.low.row_range(first, rows.count) : Tensor());
  }
}

void Gradients::load(const Bucket& bucket) {
  if (place_ != ReducedPlace::kPacked) return;
  hold(bucket);
  for_each_packed(bucket, [&](const Tensor& values, const Tensor& high, const Tensor& low) {
    backend_.decode_master(
        {packed_format(), values.as<float>(), high.data, low.data, values.elements()});
  });
}

void Gradients::store(const Bucket& bucket) {
  if (place_ != ReducedPlace::kPacked) return;
  int64_t rejected = 0;
  for_each_packed(bucket, [&](const Tensor& values, const Tensor& high, const Tensor& low) {
    backend_.encode_master(
        {packed_format(), values.as<float>(), high.data, low.data, values.elements(), &rejected});
  });
  backend_.synchronize();
  if (rejected == 0) return;
  constexpr uint16_t kNaN = 0x7fc0;
  for_each_packed(bucket, [&](const Tensor& values, const Tensor& high, const Tensor& low) {
    const std::vector<uint16_t> poison(static_cast<size_t>(values.elements()), kNaN);
    backend_.copy(high.data, poison.data(), high.bytes());
    if (low) backend_.zero(low.data, low.bytes());
    backend_.synchronize();  // before `poison` goes
  });
}

void Gradients::hold(const Bucket& bucket) {
  if (place_ != ReducedPlace::kBucket && place_ != ReducedPlace::kPacked) return;
  for (auto& tensor : held_) tensor.clear();
  const ShardRange shards = placement_.states();
  std::byte* next = bucket_memory_;
  for (const BucketSegment& segment : bucket.segments) {
    for (int s = shards.first; s < shards.end(); ++s) {
      const RowRange rows = plan_.rows(segment, s);
      const Tensor memory(next, reduced_dtype(),
                          {rows.count, plan_.layout().parameter(segment.tensor).cols});
      held_[static_cast<size_t>(segment.tensor)].push_back({rows.first, memory});
      next += memory.bytes();
    }
  }
}

Tensor Gradients::reduced_rows(int tensor, RowRange rows) const {
  if (place_ == ReducedPlace::kLocal) return local_rows(tensor, rows);
  const auto& held = held_[static_cast<size_t>(tensor)];
  const auto holds = [&](const Held& one) {
    return rows.first >= one.first_row &&
           rows.first + rows.count <= one.first_row + one.rows.rows();
  };
  const auto found = std::ranges::find_if(held, holds);
  if (found == held.end()) {
    throw Error(ExitCode::kInternal, "these rows of a reduced gradient are not on this rank");
  }
  return found->rows.row_range(rows.first - found->first_row, rows.count);
}

}  // namespace flashshard
