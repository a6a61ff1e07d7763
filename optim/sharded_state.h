// A rank's memory of a model in training: the weights and states that its stage leaves it. What a
// checkpoint saves, what `hash` hashes and what the update changes.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "optim/memory.h"
#include "optim/shard_layout.h"
#include "optim/shard_placement.h"
#include "optim/sharding.h"
#include "optim/update_rule.h"

namespace flashshard {

/// One tensor's rows on this rank, as bytes: what goes into a checkpoint file. Host-readable on the
/// CPU backend.
struct ShardTensorView {
  int tensor = 0;     // index in the layout
  std::string state;  // "weight", or the name of a StateTensorSpec
  DType dtype = DType::kBF16;
  int64_t group = 1;           // one element for each `group` weight elements
  RowRange rows;               // of the whole tensor
  std::span<std::byte> bytes;  // these rows' elements, whole units, in row order
};

class ShardedState {
 public:
  /// Allocates what the rank holds (ShardPlacement). `weight_dtype` bf16 or fp32.
  ShardedState(MemoryLedger& ledger, const ShardLayout& layout, const UpdateRule& rule, int rank,
               DType weight_dtype, const Sharding& sharding);

  const ShardLayout& layout() const { return layout_; }
  const ShardPlacement& placement() const { return placement_; }

  DType weight_dtype() const { return weight_dtype_; }
  /// The rows of a weight that this rank holds: all before stage 3.
  Tensor weight(int tensor) const { return weights_[static_cast<size_t>(tensor)]; }
  /// Some of them, by their place in the whole tensor.
  Tensor weight_rows(int tensor, RowRange rows) const;
  const std::vector<StateTensorSpec>& state_specs(int tensor) const {
    return specs_[static_cast<size_t>(tensor)];
  }
  WeightFormat weight_format(int tensor) const { return formats_[static_cast<size_t>(tensor)]; }

  /// The slice of `rows` (whole units whose states this rank holds) with the gradient of the same
  /// rows.
  ShardSlice slice(int tensor, RowRange rows, Tensor gradient) const;

  /// Bytes of a state at `rows` (whole units whose states this rank holds).
  std::span<std::byte> state_bytes(int tensor, size_t state, RowRange rows) const;

  /// Every tensor's weight rows and states that this rank owns, tensor by tensor, weight first,
  /// states in the rule's order. A tensor of which it owns no row has empty views.
  std::vector<ShardTensorView> shard_views() const;

 private:
  void* state_at(int tensor, size_t state, int64_t row) const;

  const ShardLayout& layout_;
  ShardPlacement placement_;
  DType weight_dtype_;
  std::vector<Tensor> weights_;
  std::vector<WeightFormat> formats_;
  std::vector<std::vector<StateTensorSpec>> specs_;
  std::vector<std::vector<void*>> states_;
};

}  // namespace flashshard
