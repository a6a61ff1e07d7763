#include "optim/ledger.h"

#include <algorithm>

namespace flashshard {
namespace {

// A bucket closes before it would exceed bucket_bytes, never crosses a layer, and holds at least one unit of each rank.
int64_t largest_bucket(const ShardLayout& layout, int64_t bucket_elements) {
  int64_t largest = 0;
  int layer = -1;
  int64_t run = 0;
  for (int t = layout.tensors() - 1; t >= 0; --t) {
    const ParameterSpec& parameter = layout.parameter(t);
    const int64_t elements = std::min(parameter.elements(), bucket_elements);
    if (parameter.layer != layer || run + elements > bucket_elements) run = 0;
    layer = parameter.layer;
    run += elements;
    const int64_t one_unit_each = std::min<int64_t>(
        layout.unit_rows(t) * parameter.cols * layout.world_size(), parameter.elements());
    largest = std::max({largest, run, one_unit_each});
  }
  return largest;
}

}  // namespace

MemoryTable predict_memory(const ShardLayout& layout, const UpdateRule& rule, int rank,
                           const LedgerInputs& inputs) {
  MemoryTable table;
  const auto width = [](DType dtype) { return static_cast<int64_t>(size_of(dtype)); };
  const MemoryClass gradients =
      inputs.gradient_dtype == inputs.weight_dtype ? MemoryClass::kGradients : MemoryClass::kAccumulator;
  for (int t = 0; t < layout.tensors(); ++t) {
    const ParameterSpec& parameter = layout.parameter(t);
    table[MemoryClass::kWeights] += parameter.elements() * width(inputs.weight_dtype);
    table[gradients] += parameter.elements() * width(inputs.gradient_dtype);
    const int64_t own = layout.rows_of(t, rank).count * parameter.cols;
    for (const StateTensorSpec& state : rule.states(parameter)) {
      table[state.memory_class] += state.elements_for(own) * width(state.dtype);
    }
  }
  if (layout.world_size() > 1) {
    const int64_t elements =
        largest_bucket(layout, std::max<int64_t>(inputs.bucket_bytes / width(inputs.wire), 1));
    table[MemoryClass::kBuckets] =
        2 * elements * std::max(width(inputs.wire), width(inputs.weight_dtype));
  }
  table[MemoryClass::kActivations] = inputs.activation_bytes;
  table[MemoryClass::kOther] = inputs.other_bytes;
  return table;
}

}  // namespace flashshard
