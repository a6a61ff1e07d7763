#include "optim/sharded_state.h"

#include <algorithm>
#include <cstring>

namespace flashshard {
namespace {

// States start at a bit pattern of their own (a scale is never zero), written in chunks through a
// host buffer.
void fill(Backend& backend, void* memory, DType dtype, uint32_t bits, int64_t count) {
  if (bits == 0 || count == 0) return;  // allocations are zeroed
  const auto width = size_of(dtype);
  const int64_t chunk = std::min<int64_t>(count, 1 << 16);
  std::vector<std::byte> pattern(static_cast<size_t>(chunk) * width);
  for (int64_t i = 0; i < chunk; ++i) {
    std::memcpy(pattern.data() + static_cast<size_t>(i) * width, &bits, width);
  }
  for (int64_t done = 0; done < count; done += chunk) {
    const auto n = static_cast<size_t>(std::min(chunk, count - done));
    backend.copy(static_cast<std::byte*>(memory) + static_cast<size_t>(done) * width,
                 pattern.data(), n * width);
  }
  backend.synchronize();
}

}  // namespace

ShardedState::ShardedState(MemoryLedger& ledger, const ShardLayout& layout, const UpdateRule& rule,
                           int rank, DType weight_dtype, const Sharding& sharding)
    : layout_(layout),
      placement_(sharding, layout.world_size(), rank),
      weight_dtype_(weight_dtype) {
  for (int t = 0; t < layout.tensors(); ++t) {
    const ParameterSpec& parameter = layout.parameter(t);
    const int64_t weight_rows = layout.rows_of(t, placement_.weights()).count;
    weights_.push_back(
        ledger.tensor(MemoryClass::kWeights, weight_dtype, {weight_rows, parameter.cols}));
    formats_.push_back(rule.weight_format(parameter));
    specs_.push_back(rule.states(parameter));
    const int64_t elements = layout.rows_of(t, placement_.states()).count * parameter.cols;
    std::vector<void*> states;
    for (const StateTensorSpec& spec : specs_.back()) {
      const int64_t count = spec.elements_for(elements);
      void* memory =
          ledger.allocate(spec.memory_class, static_cast<size_t>(count) * size_of(spec.dtype));
      fill(ledger.backend(), memory, spec.dtype, spec.initial_bits, count);
      states.push_back(memory);
    }
    states_.push_back(std::move(states));
  }
}

Tensor ShardedState::weight_rows(int tensor, RowRange rows) const {
  if (rows.count == 0) return Tensor(nullptr, weight_dtype_, {0, layout_.parameter(tensor).cols});
  const int64_t first = layout_.rows_of(tensor, placement_.weights()).first;
  return weight(tensor).row_range(rows.first - first, rows.count);
}

/// `row`: in the whole tensor, the first of a unit.
void* ShardedState::state_at(int tensor, size_t state, int64_t row) const {
  const StateTensorSpec& spec = specs_[static_cast<size_t>(tensor)][state];
  auto* base = static_cast<std::byte*>(states_[static_cast<size_t>(tensor)][state]);
  if (base == nullptr) return nullptr;
  row -= layout_.rows_of(tensor, placement_.states()).first;
  const int64_t elements = row * layout_.parameter(tensor).cols;  // whole units: whole groups
  return base + static_cast<size_t>(elements / spec.group) * size_of(spec.dtype);
}

std::span<std::byte> ShardedState::state_bytes(int tensor, size_t state, RowRange rows) const {
  const StateTensorSpec& spec = state_specs(tensor)[state];
  const int64_t elements = rows.count * layout_.parameter(tensor).cols;
  const auto bytes = static_cast<size_t>(spec.elements_for(elements)) * size_of(spec.dtype);
  return {static_cast<std::byte*>(state_at(tensor, state, rows.first)), bytes};
}

ShardSlice ShardedState::slice(int tensor, RowRange rows, Tensor gradient) const {
  ShardSlice slice;
  slice.parameter = &layout_.parameter(tensor);
  slice.tensor = tensor;
  slice.weight = weight_rows(tensor, rows);
  slice.gradient = gradient;
  slice.first_element = rows.first * slice.parameter->cols;
  for (size_t s = 0; s < state_specs(tensor).size(); ++s) {
    slice.states.push_back(state_at(tensor, s, rows.first));
  }
  return slice;
}

std::vector<ShardTensorView> ShardedState::shard_views() const {
  std::vector<ShardTensorView> views;
  for (int t = 0; t < layout_.tensors(); ++t) {
    const RowRange rows = layout_.rows_of(t, placement_.own());
    const Tensor own = weight_rows(t, rows);
    views.push_back({t, "weight", own.dtype, 1, rows, {own.as<std::byte>(), own.bytes()}});
    for (size_t s = 0; s < state_specs(t).size(); ++s) {
      const StateTensorSpec& spec = state_specs(t)[s];
      views.push_back({t, spec.name, spec.dtype, spec.group, rows, state_bytes(t, s, rows)});
    }
  }
  return views;
}

}  // namespace flashshard
