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

DType GradientFormat::reduced(int world_size) const {
  if (sharding.reduced_place(world_size) == ReducedPlace::kLocal) return local();
  return sharding.has_accumulator() || sharding.fp32_reduced_gradient ? DType::kFP32 : model;
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

int64_t reduced_bucket_bytes(const BucketPlan& plan, int rank, const GradientFormat& format) {
  const int world_size = plan.layout().world_size();
  if (format.sharding.reduced_place(world_size) != ReducedPlace::kBucket) return 0;
  int64_t elements = 0;
  for (const Bucket& bucket : plan.buckets()) {
    const bool own = format.sharding.divides_states();
    elements = std::max(elements, own ? plan.elements_of(bucket, rank) : bucket.elements);
  }
  return elements * static_cast<int64_t>(size_of(format.reduced(world_size)));
}

Gradients::Gradients(MemoryLedger& ledger, const BucketPlan& plan, int rank,
                     const GradientFormat& format)
    : plan_(plan),
      rank_(rank),
      format_(format),
      place_(format.sharding.reduced_place(plan.layout().world_size())),
      held_(static_cast<size_t>(plan.layout().tensors())) {
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
  if (place_ == ReducedPlace::kBucket) {
    const auto bytes = static_cast<size_t>(reduced_bucket_bytes(plan_, rank_, format_));
    bucket_memory_ = static_cast<std::byte*>(ledger.allocate(MemoryClass::kBuckets, bytes));
  }
  if (place_ != ReducedPlace::kMemory) return;
  const ShardLayout& layout = plan_.layout();
  for (int t = 0; t < layout.tensors(); ++t) {
    const ParameterSpec& parameter = layout.parameter(t);
    const RowRange rows =
        format_.sharding.divides_states() ? layout.rows_of(t, rank_) : RowRange{0, parameter.rows};
    held_[static_cast<size_t>(t)] = {
        {rows.first,
         ledger.tensor(format_.reduced_class(), reduced_dtype(), {rows.count, parameter.cols})}};
  }
}

void Gradients::hold(const Bucket& bucket) {
  if (place_ != ReducedPlace::kBucket) return;
  for (auto& tensor : held_) tensor.clear();
  const bool own = format_.sharding.divides_states();
  const int first = own ? rank_ : 0;
  const int end = own ? rank_ + 1 : plan_.layout().world_size();
  std::byte* next = bucket_memory_;
  for (const BucketSegment& segment : bucket.segments) {
    for (int r = first; r < end; ++r) {
      const RowRange rows = plan_.rows(segment, r);
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
