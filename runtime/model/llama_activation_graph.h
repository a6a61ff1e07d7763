// The graph of a Llama's passes: every operation as one step, with the activations that it reads or
// writes. It follows llama_forward.cc and llama_backward.cc call by call; all lifetimes come from
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "kernels/tensor.h"
#include "runtime/model/activation_plan.h"
#include "runtime/model/llama_activations.h"
#include "runtime/model/llama_options.h"

namespace flashshard {

class LlamaActivationGraph {
 public:
  /// Number of a tensor in `tensors()`.
  using Id = size_t;
  static constexpr Id kNoTensor = ~Id{0};

  LlamaActivationGraph(const LlamaOptions& options, const ActivationShape& shape);

  /// Views without memory (dtype and shape), and their lifetimes in the same order.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const std::vector<PlannedTensor>& lifetimes() const { return lifetimes_; }

  const std::vector<BlockViewsOf<Id>>& blocks() const { return blocks_; }
  const SharedOf<Id>& shared() const { return shared_; }
  const std::vector<Id>& caches() const { return caches_; }
  /// Operations of the whole pass: step k of a lifetime is the k-th of them.
  int steps() const { return steps_; }

 private:
  using Block = BlockOf<Id>;

  Id declare(std::string name, DType dtype, std::initializer_list<int64_t> dimensions);
  /// (T, width) of the model's dtype.
  Id rows(std::string name, int64_t width);
  /// Another tensor of the same shape.
  Id again(Id id);
  void declare_shared();
  void declare_caches();
  Block forward_block(int layer);
  /// A block with tensors of its own in place of what was not kept.
  Block recomputed_block(const Block& forward, int layer);
  Block backward_block(const Block& recomputed, int layer);

  /// The next operation of the pass reads or writes these; kNoTensor stands for none.
  void step(std::initializer_list<Id> touched);

  void forward(int layer);
  void attention_branch(const Block& block);
  void middle_norm_and_gate_up(const Block& block);
  void head(bool training);
  void backward();
  void recompute(const Block& block, int layer);
  void backward_feed_forward(const Block& block);
  void backward_attention(const Block& block);
  void projection_backward(Id grad_x, Id grad_out, Id x);

  bool recomputes(Recompute level) const { return recompute_ >= level; }
  /// The last block's backward follows its forward at once: what matrix products made is still
  /// there.
  bool recomputes(Recompute level, int layer) const {
    return recomputes(level) && layer < options_.layers;
  }

  const LlamaOptions& options_;
  int64_t tokens_;
  Recompute recompute_;
  AttentionScope attention_;
  std::vector<Tensor> tensors_;
  std::vector<PlannedTensor> lifetimes_;
  std::vector<BlockViewsOf<Id>> blocks_;
  SharedOf<Id> shared_;
  std::vector<Id> caches_;
  int steps_ = 0;
};

}  // namespace flashshard
