// Whole weights of stage 3, a layer at a time: blocks take turns in two slots by the parity of
// their number, so addresses never change; a layer is gathered before its use and the next one
// while it is used. Rows of a tensor stand in rank order, so they arrive where they are read.
#pragma once

#include <array>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "optim/memory.h"
#include "optim/sharded_state.h"

namespace flashshard {

/// Which slot holds a layer and where its tensors stand in it. A group of one rank holds every
/// weight whole and needs no slot.
class GatheredLayout {
 public:
  explicit GatheredLayout(const ShardLayout& layout, DType dtype);

  /// Two for the blocks, one for what is before and one for what is behind them; these two share
  /// one unless a tied table is read at both ends.
  static constexpr size_t kSlots = 4;
  size_t slot_of(int layer) const;
  const std::array<int64_t, kSlots>& slot_bytes() const { return slot_bytes_; }
  /// Bytes from the start of its slot.
  int64_t offset(int tensor) const { return offsets_[static_cast<size_t>(tensor)]; }
  int last_layer() const { return last_layer_; }

 private:
  int last_layer_ = 0;
  bool tied_ = false;
  std::array<int64_t, kSlots> slot_bytes_ = {};
  std::vector<int64_t> offsets_;
};

class GatheredWeights {
 public:
  /// `group`: the ranks that hold the model among them, by place (ShardPlacement).
  GatheredWeights(Communicator& group, MemoryLedger& ledger, const ShardedState& state);

  /// Whole weights by tensor; a tensor can be read while its layer is the last announced.
  const std::vector<Tensor>& tensors() const { return tensors_; }

  /// Begins a forward, which a backward follows or not. Every rank calls this and before_layer() in
  /// the same order, with a micro-batch or without.
  void begin_pass(bool backward_follows);
  /// LayerHooks::before_layer: waits for the layer and starts the next.
  void before_layer(int layer);
  /// The weights have changed.
  void invalidate();
  /// Milliseconds that the calls have taken since the last call of this function.
  double take_wait_ms();

 private:
  struct Slot {
    int layer = -1;  // what it holds or is about to
    std::vector<Pending> pending;
  };

  Slot& slot_of(int layer) { return slots_[layout_.slot_of(layer)]; }
  void start(int layer);
  void finish(Slot& slot);

  Communicator& group_;
  Backend& backend_;
  const ShardedState& state_;
  GatheredLayout layout_;
  std::vector<Tensor> tensors_;
  std::array<Slot, GatheredLayout::kSlots> slots_;
  bool backward_follows_ = false;
  bool backward_ = false;
  int latest_ = -1;
  double wait_ms_ = 0;
};

}  // namespace flashshard
