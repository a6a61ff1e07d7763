// What a trainer, an evaluation and a generator see of a model: its parameters, a micro-batch in,
// gradients out. A model knows tensors and hooks and no ranks; weights and gradients are bound from
// outside.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/tensor.h"
#include "optim/parameter_spec.h"
#include "runtime/model/initialize.h"

namespace flashshard {

/// What a token attends to: what stands before it in its sequence, or in its document alone.
enum class AttentionScope : uint8_t { kSequence, kDocument };

/// Token ids in host memory, sequence after sequence: `sequences * sequence_length` of each.
struct MicroBatchView {
  std::span<const int32_t> inputs;   // in [0, vocabulary)
  std::span<const int32_t> targets;  // in [0, vocabulary), or -1: not counted in the loss
  int64_t sequences = 0;
  int64_t sequence_length = 0;
  /// Of every token the index in its sequence at which its document begins: tokens attend within
  /// their document alone, and positions count from its start. Empty: within the sequence.
  std::span<const int32_t> document_starts = {};
};

struct LossResult {
  double loss_sum = 0;      // nats, summed over the counted targets
  int64_t token_count = 0;  // counted targets
};

/// What happens around a layer; `layer` as in ParameterSpec::layer (0 embedding, 1..L blocks, L+1
/// final norm and head). Either may be empty. Work that a hook enqueues on the backend's stream
/// comes after everything enqueued before it.
struct LayerHooks {
  /// The weights of `layer` are read next. Forward: 0, 1, ..., L, then L+1 (with tied embeddings 0
  /// once more just before L+1, because the head reads that layer's table); backward: L, ..., 1.
  std::function<void(int layer)> before_layer;
  /// The gradients of `layer` are final and its weights are read no more in this call: L+1, L, ...,
  /// 0. The gradient of a tied embedding is final with layer 0.
  std::function<void(int layer)> after_layer_backward;

  void call_before_layer(int layer) const {
    if (before_layer) before_layer(layer);
  }
  void call_after_layer_backward(int layer) const {
    if (after_layer_backward) after_layer_backward(layer);
  }
};

class Model {
 public:
  virtual ~Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  /// In forward order. The index of a parameter in this list is its tensor number everywhere.
  virtual const std::vector<ParameterSpec>& parameters() const = 0;
  /// How a fresh parameter is drawn (initialize.h).
  virtual Initialization initialization(int tensor) const = 0;

  virtual int64_t vocabulary_size() const = 0;
  /// Longest sequence of any call, fixed at construction.
  virtual int64_t maximum_sequence_length() const = 0;
  /// Floating-point operations of forward and backward per token at this sequence length.
  virtual double flops_per_token(int64_t sequence_length) const = 0;

  /// weights[i], gradients[i] belong to parameters()[i], (rows, cols). Weights have the model's
  /// dtype; gradients are all bf16 or all fp32, and may be left out where only losses or logits are
  /// asked for. Throws Error(kInternal) on a mismatch.
  virtual void bind(std::span<const Tensor> weights, std::span<const Tensor> gradients) = 0;

  /// Forward and backward of one micro-batch. The gradients are those of the SUM of the token
  /// losses; the caller divides by a token count. `accumulate`: added to what the gradients hold
  /// (fp32 gradients only), otherwise overwritten. Throws Error(kBadData) on a token outside the
  /// vocabulary.
  virtual LossResult forward_backward(const MicroBatchView& batch, const LayerHooks& hooks,
                                      bool accumulate) = 0;
  /// The same loss, forward only; gradients stay as they are.
  virtual LossResult evaluate(const MicroBatchView& batch, const LayerHooks& hooks = {}) = 0;

  /// Scores of every token of the vocabulary as the next one after `tokens`, 1 <= size <=
  /// maximum_sequence_length(). A model made for generation remembers the tokens.
  virtual std::vector<float> next_token_logits(std::span<const int32_t> tokens) = 0;
  /// The same after the remembered tokens and `token`, which is remembered with them; at most
  /// maximum_sequence_length() together. Throws Error(kInternal) when there is no room, or nothing
  /// to follow.
  virtual std::vector<float> continue_with(int32_t token) = 0;
  /// Of the text that continue_with() goes on from; 0 for a model not made for generation.
  virtual int64_t remembered_tokens() const = 0;

 protected:
  Model() = default;
};

}  // namespace flashshard
