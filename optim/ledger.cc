#include "optim/ledger.h"

#include <algorithm>

#include "optim/buckets.h"
#include "optim/gathered_weights.h"
#include "optim/reduction.h"

namespace flashshard {
namespace {

int64_t width(DType dtype) { return static_cast<int64_t>(size_of(dtype)); }

int64_t elements_of(const ShardLayout& layout, int tensor, ShardRange shards) {
  return layout.rows_of(tensor, shards).count * layout.parameter(tensor).cols;
}

void add_gradients(const BucketPlan& plan, const ShardPlacement& placement,
                   const GradientFormat& format, MemoryTable& table) {
  const ShardLayout& layout = plan.layout();
  const Sharding& sharding = format.sharding;
  if (!sharding.keeps_local_gradients()) {
    const auto transient = transient_gradient_bytes(layout, format.local());
    table[format.local_class()] += transient.slot + transient.tied;
  }
  const ReducedPlace place = format.reduced_place(layout.world_size());
  const bool memory = place == ReducedPlace::kMemory;
  const int64_t packed = sharding.accumulator == AccumulatorFormat::kSplit ? 3 : 2;
  for (int t = 0; t < layout.tensors(); ++t) {
    if (sharding.keeps_local_gradients()) {
      table[format.local_class()] += layout.parameter(t).elements() * width(format.local());
    }
    if (memory) {
      table[format.reduced_class()] +=
          elements_of(layout, t, placement.states()) * width(format.reduced(layout.world_size()));
    }
    if (place == ReducedPlace::kPacked) {
      table[MemoryClass::kAccumulator] += elements_of(layout, t, {placement.own(), 1}) * packed;
    }
  }
  table[MemoryClass::kBuckets] += reduced_bucket_bytes(plan, placement, format);
}

void add_staging(const BucketPlan& plan, const ShardPlacement& placement,
                 const LedgerInputs& inputs, MemoryTable& table) {
  const GradientFormat& format = inputs.format;
  const auto staging = plan.staging_bytes(placement, inputs.wire, inputs.order);
  const int64_t one = staging.packed + staging.received +
                      gradient_gather_bytes(plan, placement, format) +
                      weight_gather_bytes(plan, placement, format);
  table[MemoryClass::kBuckets] += static_cast<int64_t>(kTransfersInFlight) * one;
  if (!format.sharding.divides_weights() || placement.group() == 1) return;
  const GatheredLayout gathered(plan.layout(), format.model);
  for (const int64_t slot : gathered.slot_bytes()) table[MemoryClass::kGathered] += slot;
}

}  // namespace

int64_t owned_bytes(const ShardLayout& layout, const UpdateRule& rule, int shard, DType model) {
  int64_t bytes = 0;
  for (int t = 0; t < layout.tensors(); ++t) {
    const int64_t elements = elements_of(layout, t, {shard, 1});
    bytes += elements * width(model);
    for (const StateTensorSpec& state : rule.states(layout.parameter(t))) {
      bytes += state.elements_for(elements) * width(state.dtype);
    }
  }
  return bytes;
}

MemoryTable predict_memory(const ShardLayout& layout, const UpdateRule& rule, int rank,
                           const LedgerInputs& inputs) {
  MemoryTable table;
  const ShardPlacement placement(inputs.format.sharding, layout.world_size(), rank);
  for (int t = 0; t < layout.tensors(); ++t) {
    table[MemoryClass::kWeights] +=
        elements_of(layout, t, placement.weights()) * width(inputs.format.model);
    const int64_t elements = elements_of(layout, t, placement.states());
    for (const StateTensorSpec& state : rule.states(layout.parameter(t))) {
      table[state.memory_class] += state.elements_for(elements) * width(state.dtype);
    }
  }
  const BucketPlan plan(layout, inputs.bucket_bytes, width(inputs.wire));
  add_gradients(plan, placement, inputs.format, table);
  add_staging(plan, placement, inputs, table);
  table[MemoryClass::kStaging] = std::min(
      inputs.staging_limit, owned_bytes(layout, rule, placement.own(), inputs.format.model));
  table[MemoryClass::kActivations] = inputs.activation_bytes;
  table[MemoryClass::kOther] = inputs.other_bytes;
  return table;
}

}  // namespace flashshard
