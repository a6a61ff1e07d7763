#include "optim/ledger.h"

#include "optim/buckets.h"

namespace flashshard {
MemoryTable predict_memory(const ShardLayout& layout, const UpdateRule& rule, int rank,
                           const LedgerInputs& inputs) {
  MemoryTable table;
  const auto width = [](DType dtype) { return static_cast<int64_t>(size_of(dtype)); };
  const MemoryClass gradients = inputs.gradient_dtype == inputs.weight_dtype
                                    ? MemoryClass::kGradients
                                    : MemoryClass::kAccumulator;
  for (int t = 0; t < layout.tensors(); ++t) {
    const ParameterSpec& parameter = layout.parameter(t);
    table[MemoryClass::kWeights] += parameter.elements() * width(inputs.weight_dtype);
    table[gradients] += parameter.elements() * width(inputs.gradient_dtype);
    const int64_t own = layout.rows_of(t, rank).count * parameter.cols;
    for (const StateTensorSpec& state : rule.states(parameter)) {
      table[state.memory_class] += state.elements_for(own) * width(state.dtype);
    }
  }
  const BucketPlan plan(layout, inputs.bucket_bytes, width(inputs.wire));
  for (int64_t bytes : plan.staging_bytes(rank, inputs.wire, inputs.weight_dtype, inputs.order)) {
    table[MemoryClass::kBuckets] += bytes;
  }
  table[MemoryClass::kActivations] = inputs.activation_bytes;
  table[MemoryClass::kOther] = inputs.other_bytes;
  return table;
}

}  // namespace flashshard
