#include "optim/ledger.h"

#include <algorithm>

#include "optim/buckets.h"
#include "optim/gathered_weights.h"
#include "optim/reduction.h"

namespace flashshard {
namespace {

int64_t width(DType dtype) { return static_cast<int64_t>(size_of(dtype)); }

/// Elements of a tensor that a rank holds.
int64_t held(const ShardLayout& layout, int tensor, int rank, bool divided) {
  const ParameterSpec& parameter = layout.parameter(tensor);
  return divided ? layout.rows_of(tensor, rank).count * parameter.cols : parameter.elements();
}

void add_gradients(const BucketPlan& plan, int rank, const GradientFormat& format,
                   MemoryTable& table) {
  const ShardLayout& layout = plan.layout();
  const Sharding& sharding = format.sharding;
  if (!sharding.keeps_local_gradients()) {
    const auto transient = transient_gradient_bytes(layout, format.local());
    table[format.local_class()] += transient.slot + transient.tied;
  }
  const ReducedPlace place = sharding.reduced_place(layout.world_size());
  const bool memory = place == ReducedPlace::kMemory;
  const int64_t packed = sharding.accumulator == AccumulatorFormat::kSplit ? 3 : 2;
  for (int t = 0; t < layout.tensors(); ++t) {
    if (sharding.keeps_local_gradients()) {
      table[format.local_class()] += layout.parameter(t).elements() * width(format.local());
    }
    if (memory) {
      table[format.reduced_class()] += held(layout, t, rank, sharding.divides_states()) *
                                       width(format.reduced(layout.world_size()));
    }
    if (place == ReducedPlace::kPacked) {
      table[MemoryClass::kAccumulator] += held(layout, t, rank, true) * packed;
    }
  }
  table[MemoryClass::kBuckets] += reduced_bucket_bytes(plan, rank, format);
}

void add_staging(const BucketPlan& plan, int rank, const LedgerInputs& inputs, MemoryTable& table) {
  const int world_size = plan.layout().world_size();
  const auto staging =
      plan.staging_bytes(rank, inputs.wire, inputs.format.gathered(world_size), inputs.order);
  const int64_t one = staging.packed + staging.received +
                      (inputs.format.sharding.gathers_in_backward() ? staging.packed : 0);
  table[MemoryClass::kBuckets] += static_cast<int64_t>(kTransfersInFlight) * one;
  if (!inputs.format.sharding.divides_weights() || world_size == 1) return;
  const GatheredLayout gathered(plan.layout(), inputs.format.model);
  for (const int64_t slot : gathered.slot_bytes()) table[MemoryClass::kGathered] += slot;
}

}  // namespace

int64_t owned_bytes(const ShardLayout& layout, const UpdateRule& rule, int rank, DType model) {
  int64_t bytes = 0;
  for (int t = 0; t < layout.tensors(); ++t) {
    const int64_t elements = held(layout, t, rank, true);
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
  const Sharding& sharding = inputs.format.sharding;
  for (int t = 0; t < layout.tensors(); ++t) {
    table[MemoryClass::kWeights] +=
        held(layout, t, rank, sharding.divides_weights()) * width(inputs.format.model);
    const int64_t elements = held(layout, t, rank, sharding.divides_states());
    for (const StateTensorSpec& state : rule.states(layout.parameter(t))) {
      table[state.memory_class] += state.elements_for(elements) * width(state.dtype);
    }
  }
  const BucketPlan plan(layout, inputs.bucket_bytes, width(inputs.wire));
  add_gradients(plan, rank, inputs.format, table);
  add_staging(plan, rank, inputs, table);
  table[MemoryClass::kStaging] =
      std::min(inputs.staging_limit, owned_bytes(layout, rule, rank, inputs.format.model));
  table[MemoryClass::kActivations] = inputs.activation_bytes;
  table[MemoryClass::kOther] = inputs.other_bytes;
  return table;
}

}  // namespace flashshard
