// Activation memory of a Llama decoder: planned once for the largest micro-batch, reused by every
// one.
//
// A block keeps what its backward cannot rebuild cheaply: both residual inputs, their inverse rms,
// rotated q‖k‖v, the attention output with its log-sum-exp, and gate‖up. The two normed inputs and
// the SwiGLU output are recomputed in the backward: kept, they would be nearly half as much memory
// again, and each costs one elementwise pass beside two matrix products over the same rows
// (docs/model.md has the numbers).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/tensor.h"
#include "optim/memory.h"
#include "runtime/model/llama_options.h"

namespace flashshard {

/// Training keeps every block's activations, inference one block's.
enum class ActivationUse : uint8_t { kTraining, kInference };

/// The largest micro-batch that a model will see: T = sequences * sequence_length tokens.
struct ActivationShape {
  int64_t sequences = 1;
  int64_t sequence_length = 0;
  ActivationUse use = ActivationUse::kTraining;

  int64_t tokens() const { return sequences * sequence_length; }
};

/// Bytes that LlamaActivations allocates. With e the bytes of an element (2 or 4) and B = L blocks
/// (1 for inference):
///   B * T * (e * (2H + Q + A*D + 2F) + 4 * (2 + A)) + T * (2 e H + 4 + 8) + scratch
/// scratch = max(T e F, T e (A*D + Q), 2 T e H, 4 V), each tensor in it rounded up to 256 bytes.
int64_t activation_bytes(const LlamaOptions& options, const ActivationShape& shape);

/// What the backward of one block reads.
struct BlockActivations {
  Tensor input;               // (T, H) residual stream entering the block
  Tensor input_inverse_rms;   // (T) fp32
  Tensor qkv;                 // (T, Q), q and k rotated
  Tensor attention;           // (T, A*D)
  Tensor log_sum_exp;         // (T, A) fp32
  Tensor middle;              // (T, H) residual stream between attention and feed-forward
  Tensor middle_inverse_rms;  // (T) fp32
  Tensor gate_up;             // (T, 2F); the backward puts its gradient here

  /// The first `tokens` rows of each.
  BlockActivations first(int64_t tokens) const;
};

/// What all blocks share. Tensors with a common purpose in forward and backward share memory; the
/// comments say which.
struct SharedActivations {
  Tensor tokens;         // (T) int32
  Tensor targets;        // (T) int32
  Tensor normed;         // (T, H) output of a norm; in the backward also its gradient
  Tensor branch_output;  // (T, H) what a branch adds to the residual stream, until the next norm
                         // adds it
  Tensor residual_gradient;  // (T, H) same memory: the backward's gradient of the residual stream
  Tensor final_inverse_rms;  // (T) fp32

  // Scratch: one region, its groups used at different times.
  Tensor swiglu;              // (T, F) and its gradient
  Tensor attention_gradient;  // (T, A*D), with
  Tensor qkv_gradient;        // (T, Q)
  Tensor final_residual;      // (T, H), with
  Tensor hidden_gradient;     // (T, H)
  Tensor logits;              // (1, V) fp32

  SharedActivations first(int64_t tokens) const;
};

class LlamaActivations {
 public:
  /// Allocates from the ledger's class kActivations.
  LlamaActivations(MemoryLedger& ledger, const LlamaOptions& options, const ActivationShape& shape);

  const ActivationShape& shape() const { return shape_; }
  /// Activations of block `layer` (1..L) for training.
  const BlockActivations& block(int layer) const { return blocks_[static_cast<size_t>(layer - 1)]; }
  /// One set of block activations that a forward without backward uses for every block.
  const BlockActivations& any_block() const { return blocks_.front(); }
  const SharedActivations& shared() const { return shared_; }

 private:
  ActivationShape shape_;
  std::vector<BlockActivations> blocks_;
  SharedActivations shared_;
};

}  // namespace flashshard
