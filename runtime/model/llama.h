// A Llama decoder, forward and backward, written once against the catalogue of operations
// (kernels/backend.h). docs/model.md has the picture; names and orientation of the weights are in
// llama_options.h, memory in llama_activations.h.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "optim/memory.h"
#include "runtime/model/llama_activations.h"
#include "runtime/model/llama_options.h"
#include "runtime/model/model.h"

namespace flashshard {

/// Scratch bytes of the backend for the largest of a model's calls at this shape.
size_t llama_workspace_bytes(const Backend& backend, const LlamaOptions& options,
                             const ActivationShape& shape);

/// Bytes that a Llama allocates in class kOther: workspace and rotary table.
int64_t llama_other_bytes(const Backend& backend, const LlamaOptions& options,
                          const ActivationShape& shape);

class Llama final : public Model {
 public:
  /// Allocates activations (kActivations), workspace and rotary table (kOther) for micro-batches of
  /// up to `shape.sequences` sequences of up to `shape.sequence_length` tokens. Throws
  /// Error(kUsage) on options out of range, Error(kOutOfSpace) from the ledger, which must outlive
  /// the model.
  Llama(MemoryLedger& ledger, const LlamaOptions& options, const ActivationShape& shape);

  const std::vector<ParameterSpec>& parameters() const override { return parameters_; }
  Initialization initialization(int tensor) const override {
    return llama_initialization(options_, tensor);
  }
  int64_t vocabulary_size() const override { return options_.vocab_size; }
  int64_t maximum_sequence_length() const override { return activations_.shape().sequence_length; }
  double flops_per_token(int64_t sequence_length) const override {
    return llama_flops_per_token(options_, sequence_length);
  }

  void bind(std::span<const Tensor> weights, std::span<const Tensor> gradients) override;
  LossResult forward_backward(const MicroBatchView& batch, const LayerHooks& hooks,
                              bool accumulate) override;
  LossResult evaluate(const MicroBatchView& batch, const LayerHooks& hooks = {}) override;
  std::vector<float> next_token_logits(std::span<const int32_t> tokens) override;
  std::vector<float> continue_with(int32_t token) override;
  int64_t remembered_tokens() const override { return remembered_tokens_; }

 private:
  /// Bound tensors by purpose: once for the weights, once for their gradients.
  struct BlockTensors {
    Tensor input_norm;           // (H)
    Tensor qkv_projection;       // (Q, H)
    Tensor output_projection;    // (H, A*D)
    Tensor post_attention_norm;  // (H)
    Tensor gate_up_projection;   // (2F, H)
    Tensor down_projection;      // (H, F)
    Tensor qkv_bias;             // (Q), empty in a model without
  };
  struct ModelTensors {
    Tensor embedding;  // (V, H)
    std::vector<BlockTensors> blocks;
    Tensor final_norm;  // (H)
    Tensor head;        // (V, H), the embedding when tied
  };
  /// One call's view of the activations.
  struct Pass {
    SharedActivations shared;
    AttentionShape attention;
    Tensor document_starts;  // empty where a sequence is one document
    int64_t tokens = 0;
    int64_t first_position = 0;  // above 0: one token, behind those in the cache
    bool fills_cache = false;
    bool accumulate = false;
  };

  /// Throws Error(kInternal) where a caller broke the contract.
  static void require(bool holds, std::string_view what);
  ModelTensors arrange(std::span<const Tensor> tensors) const;
  void check_bound(std::span<const Tensor> tensors, bool gradients) const;
  void check_batch(const MicroBatchView& batch) const;
  void check_documents(const MicroBatchView& batch) const;
  void check_tokens(std::span<const int32_t> tokens, int32_t lowest, std::string_view what) const;

  Pass begin(int64_t sequences, int64_t sequence_length);
  Pass begin(const MicroBatchView& batch);
  const BlockTensors& weights_of(int layer) const {
    return weights_.blocks[static_cast<size_t>(layer - 1)];
  }
  const BlockTensors& gradients_of(int layer) const {
    return gradients_.blocks[static_cast<size_t>(layer - 1)];
  }

  void load(const MicroBatchView& batch, const Pass& pass);
  void forward(const Pass& pass, const LayerHooks& hooks);
  void forward_input_norm(const Pass& pass, const BlockActivations& block, int layer);
  void forward_attention(const Pass& pass, const BlockActivations& block, int layer);
  void forward_middle_norm_and_gate_up(const BlockActivations& block, int layer);
  /// Announces the head's layer and takes rows [first, T) through the last norm, into the same rows
  /// of `final_normed`.
  void forward_final_norm(const Pass& pass, int64_t first, const LayerHooks& hooks);

  void backward(const Pass& pass, const LayerHooks& hooks);
  void backward_layer(const Pass& pass, int layer);
  void backward_final_norm(const Pass& pass);
  /// What matrix products made of the block and was not kept.
  void recompute(const Pass& pass, const BlockActivations& block, int layer);
  void backward_feed_forward(const Pass& pass, const BlockActivations& block, int layer);
  void backward_attention(const Pass& pass, const BlockActivations& block, int layer);
  void backward_embedding(const Pass& pass);
  bool recomputes(Recompute level) const { return activations_.shape().recompute >= level; }

  bool has_cache() const { return activations_.shape().use == ActivationUse::kGeneration; }
  /// Copies the keys and values of the pass's tokens into their rows of the cache.
  void remember(const Pass& pass, const Tensor& qkv, int layer);
  void attend_to_cache(const Pass& pass, const BlockActivations& block, int layer);
  /// Runs the pass over tokens already loaded; scores behind its last one.
  std::vector<float> logits_of(const Pass& pass);

  Rope rope_of(const Pass& pass, const Tensor& qkv) const;
  /// RMSNorm without a residual addition: of the embedding, and recomputed by the backward.
  void normalise(const Tensor& out, const Tensor& inverse_rms, const Tensor& x,
                 const Tensor& weight);
  /// out = x w^T
  void project(const Tensor& out, const Tensor& x, const Tensor& weight);
  /// The same product backwards: gradient (+)= grad_out^T x, then grad_x = grad_out w; grad_x may
  /// be x's memory.
  void project_backward(const Tensor& grad_x, const Tensor& gradient, const Tensor& grad_out,
                        const Tensor& x, const Tensor& weight, bool accumulate);
  /// Gradients that an operation only adds to start at zero unless they accumulate over calls.
  void clear(const Pass& pass, const Tensor& gradient);

  Backend& backend_;
  LlamaOptions options_;
  std::vector<ParameterSpec> parameters_;
  LlamaActivations activations_;
  Tensor cosine_sine_;  // (positions, D)
  size_t workspace_size_;
  void* workspace_;
  ModelTensors weights_, gradients_;
  bool weights_bound_ = false, gradients_bound_ = false;
  int64_t remembered_tokens_ = 0;  // in the cache
};

}  // namespace flashshard
