#include "optim/gathered_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "optim/stopwatch.h"

namespace flashshard {
namespace {

constexpr size_t kFirstLayerSlot = 2, kLastLayerSlot = 3;

}  // namespace

GatheredLayout::GatheredLayout(const ShardLayout& layout, DType dtype) {
  for (const ParameterSpec& parameter : layout.parameters()) {
    last_layer_ = std::max(last_layer_, parameter.layer);
    tied_ = tied_ || !parameter.tied_names.empty();
  }
  std::map<int, int64_t> used;
  for (const ParameterSpec& parameter : layout.parameters()) {
    int64_t& offset = used[parameter.layer];
    offsets_.push_back(offset);
    const int64_t bytes = parameter.elements() * static_cast<int64_t>(size_of(dtype));
    offset += (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  }
  for (const auto& [layer, bytes] : used) {
    int64_t& slot = slot_bytes_[slot_of(layer)];
    slot = std::max(slot, bytes);
  }
}

size_t GatheredLayout::slot_of(int layer) const {
  if (layer == 0) return kFirstLayerSlot;
  if (layer == last_layer_) return tied_ ? kLastLayerSlot : kFirstLayerSlot;
  return static_cast<size_t>(layer % 2);
}

GatheredWeights::GatheredWeights(Communicator& group, MemoryLedger& ledger,
                                 const ShardedState& state)
    : group_(group),
      backend_(ledger.backend()),
      state_(state),
      layout_(state.layout(), state.weight_dtype()) {
  const ShardLayout& shards = state_.layout();
  std::array<std::byte*, GatheredLayout::kSlots> memory = {};
  for (size_t s = 0; s < memory.size(); ++s) {
    memory[s] = static_cast<std::byte*>(
        ledger.allocate(MemoryClass::kGathered, static_cast<size_t>(layout_.slot_bytes()[s])));
  }
  for (int t = 0; t < shards.tensors(); ++t) {
    const ParameterSpec& parameter = shards.parameter(t);
    tensors_.emplace_back(memory[layout_.slot_of(parameter.layer)] + layout_.offset(t),
                          state_.weight_dtype(),
                          std::initializer_list<int64_t>{parameter.rows, parameter.cols});
  }
}

void GatheredWeights::begin_pass(bool backward_follows) {
  backward_follows_ = backward_follows;
  backward_ = false;
  latest_ = -1;
  start(0);
}

void GatheredWeights::before_layer(int layer) {
  const Stopwatch watch;
  start(layer);
  finish(slot_of(layer));
  if (layer == layout_.last_layer()) backward_ = backward_follows_;
  // A tied table is announced once more before the head and nothing new follows it. The embedding's
  // backward reads no weight.
  const int next = layer + (backward_ ? -1 : 1);
  const bool again = !backward_ && layer <= latest_;
  if (!again && next <= layout_.last_layer() && (next > 0 || !backward_)) start(next);
  latest_ = layer;
  wait_ms_ += watch.milliseconds();
}

void GatheredWeights::invalidate() {
  for (Slot& slot : slots_) {
    finish(slot);
    slot.layer = -1;
  }
}

double GatheredWeights::take_wait_ms() { return std::exchange(wait_ms_, 0); }

void GatheredWeights::start(int layer) {
  Slot& slot = slot_of(layer);
  if (slot.layer == layer) return;
  finish(slot);
  slot.layer = layer;
  const ShardLayout& shards = state_.layout();
  const ShardPlacement& placement = state_.placement();
  for (int t = 0; t < shards.tensors(); ++t) {
    if (shards.parameter(t).layer != layer) continue;
    const RowRange own = shards.rows_of(t, placement.weights());
    const Tensor rows = state_.weight_rows(t, own);
    backend_.copy(tensors_[static_cast<size_t>(t)].row_range(own.first, own.count).data, rows.data,
                  rows.bytes());
  }
  // The slot's last reader and the copies are done before the transport writes beside them.
  backend_.synchronize();
  for (int t = 0; t < shards.tensors(); ++t) {
    if (shards.parameter(t).layer != layer) continue;
    const Tensor& whole = tensors_[static_cast<size_t>(t)];
    const size_t row_bytes = static_cast<size_t>(whole.cols()) * size_of(whole.dtype);
    std::vector<ByteRange> ranges;
    for (const ShardRange& held : placement.held_by_group()) {
      const RowRange rows = shards.rows_of(t, held);
      ranges.push_back({static_cast<size_t>(rows.first) * row_bytes,
                        static_cast<size_t>(rows.count) * row_bytes});
    }
    slot.pending.push_back(group_.all_gather({whole.as<std::byte>(), whole.bytes()}, ranges));
  }
}

void GatheredWeights::finish(Slot& slot) {
  if (slot.pending.empty()) return;
  const BackendRange range(backend_, "gather of weights of layer", slot.layer);
  for (Pending& pending : slot.pending) {
    pending.wait(fmt::format("waiting for the weights of layer {}", slot.layer));
  }
  slot.pending.clear();
}

}  // namespace flashshard
