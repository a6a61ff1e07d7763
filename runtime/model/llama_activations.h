// Activation memory of a Llama decoder: one region, planned once for the largest micro-batch
// (activation_plan.h) and reused by every one. llama_activation_graph.h says which operation
// touches which tensor; docs/model.md has the sizes.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/tensor.h"
#include "optim/memory.h"
#include "runtime/model/activation_plan.h"
#include "runtime/model/llama_options.h"
#include "runtime/model/model.h"

namespace flashshard {

/// What a model is made for. Training keeps what the backward reads; inference keeps nothing beyond
/// its next use; generation keeps the keys and values of every position besides.
enum class ActivationUse : uint8_t { kTraining, kInference, kGeneration };

/// What the backward of a block computes again instead of finding it kept. Each level contains the
/// one before. Gradients have the same bits at every level.
enum class Recompute : uint8_t {
  kNone,         // nothing
  kElementwise,  // the outputs of both norms and of SwiGLU: no matrix product
  kFeedForward,  // and gate‖up, except in the last block
  kFull,  // all but the residual stream at the block's entrance; the last block as kElementwise
};

/// The largest micro-batch that a model will see: T = sequences * sequence_length tokens.
struct ActivationShape {
  int64_t sequences = 1;
  int64_t sequence_length = 0;
  ActivationUse use = ActivationUse::kTraining;
  Recompute recompute = Recompute::kElementwise;  // of training
  AttentionScope attention = AttentionScope::kSequence;

  int64_t tokens() const { return sequences * sequence_length; }
};

/// One value for every activation of a block: its number in a plan, or its memory.
template <class T>
struct BlockOf {
  T input;                // (T, H) residual stream entering the block
  T input_inverse_rms;    // (T) fp32
  T attention_normed;     // (T, H) normed input; the backward puts its gradient here
  T qkv;                  // (T, Q), q and k rotated
  T attention;            // (T, A*D)
  T log_sum_exp;          // (T, A) fp32
  T attention_output;     // (T, H) what attention adds to the residual stream, until the next norm
                          // adds it
  T middle;               // (T, H) residual stream between attention and feed-forward
  T middle_inverse_rms;   // (T) fp32
  T feed_forward_normed;  // (T, H) normed middle; the backward puts its gradient here
  T gate_up;              // (T, 2F); the backward puts its gradient here
  T swiglu;               // (T, F); the backward puts its gradient here
  T output;               // (T, H) what feed-forward adds to the residual stream
  T attention_gradient;   // (T, A*D)
  T qkv_gradient;         // (T, Q)

  template <class Convert>
  auto map(const Convert& convert) const {
    return BlockOf<decltype(convert(input))>{.input = convert(input),
                                             .input_inverse_rms = convert(input_inverse_rms),
                                             .attention_normed = convert(attention_normed),
                                             .qkv = convert(qkv),
                                             .attention = convert(attention),
                                             .log_sum_exp = convert(log_sum_exp),
                                             .attention_output = convert(attention_output),
                                             .middle = convert(middle),
                                             .middle_inverse_rms = convert(middle_inverse_rms),
                                             .feed_forward_normed = convert(feed_forward_normed),
                                             .gate_up = convert(gate_up),
                                             .swiglu = convert(swiglu),
                                             .output = convert(output),
                                             .attention_gradient = convert(attention_gradient),
                                             .qkv_gradient = convert(qkv_gradient)};
  }
};

/// The same for what stands outside the blocks.
template <class T>
struct SharedOf {
  T tokens;             // (T) int32
  T targets;            // (T) int32
  T document_starts;    // (T) int32; where attention stays within documents
  T final_residual;     // (T, H) residual stream behind the last block
  T final_inverse_rms;  // (T) fp32
  T final_normed;       // (T, H)
  T hidden_gradient;    // (T, H) gradient of final_normed
  T residual_gradient;  // (T, H) the backward's gradient of the residual stream
  T logits;             // (1, V) fp32

  template <class Convert>
  auto map(const Convert& convert) const {
    return SharedOf<decltype(convert(tokens))>{.tokens = convert(tokens),
                                               .targets = convert(targets),
                                               .document_starts = convert(document_starts),
                                               .final_residual = convert(final_residual),
                                               .final_inverse_rms = convert(final_inverse_rms),
                                               .final_normed = convert(final_normed),
                                               .hidden_gradient = convert(hidden_gradient),
                                               .residual_gradient = convert(residual_gradient),
                                               .logits = convert(logits)};
  }
};

/// A block as each part of a pass sees it. What is kept is the same memory in all three.
template <class T>
struct BlockViewsOf {
  BlockOf<T> forward;
  BlockOf<T> recompute;  // what runs of the forward once more before the backward
  BlockOf<T> backward;
};

using BlockActivations = BlockOf<Tensor>;
using SharedActivations = SharedOf<Tensor>;

/// The first `tokens` rows of each tensor that has rows of tokens; the others are not looked at.
BlockActivations first_rows(const BlockActivations& block, int64_t tokens);
SharedActivations first_rows(const SharedActivations& shared, int64_t tokens);

/// Where every activation will lie, and how many bytes they are together.
ActivationPlan plan_activations(const LlamaOptions& options, const ActivationShape& shape);
/// plan_activations(...).bytes(): what LlamaActivations allocates.
int64_t activation_bytes(const LlamaOptions& options, const ActivationShape& shape);

class LlamaActivations {
 public:
  /// Allocates from the ledger's class kActivations.
  LlamaActivations(MemoryLedger& ledger, const LlamaOptions& options, const ActivationShape& shape);

  const ActivationShape& shape() const { return shape_; }
  /// Activations of block `layer`, 1..L.
  const BlockViewsOf<Tensor>& block(int layer) const {
    return blocks_[static_cast<size_t>(layer - 1)];
  }
  const SharedActivations& shared() const { return shared_; }
  /// (positions, 2 K D): rotated keys, then values, of every position read so far; generation only.
  const Tensor& cache(int layer) const { return caches_[static_cast<size_t>(layer - 1)]; }

 private:
  ActivationShape shape_;
  std::vector<BlockViewsOf<Tensor>> blocks_;
  SharedActivations shared_;
  std::vector<Tensor> caches_;
};

}  // namespace flashshard
