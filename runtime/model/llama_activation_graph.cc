#include "runtime/model/llama_activation_graph.h"

#include <fmt/format.h>

#include <utility>

namespace flashshard {
namespace {

constexpr int kUnused = -1;  // first step of a tensor until an operation touches it

/// Every member without a tensor.
template <template <class> class Set>
Set<LlamaActivationGraph::Id> empty() {
  return Set<LlamaActivationGraph::Id>{}.map(
      [](LlamaActivationGraph::Id) { return LlamaActivationGraph::kNoTensor; });
}

}  // namespace

LlamaActivationGraph::LlamaActivationGraph(const LlamaOptions& options,
                                           const ActivationShape& shape)
    : options_(options),
      tokens_(shape.tokens()),
      recompute_(shape.recompute),
      attention_(shape.attention) {
  const bool training = shape.use == ActivationUse::kTraining;
  declare_shared();
  for (int layer = 1; layer <= options.layers; ++layer) {
    const Block forward = forward_block(layer);
    blocks_.push_back({.forward = forward, .recompute = forward, .backward = forward});
  }
  // Targets and starts of documents arrive with the tokens; the targets stay as long.
  step({shared_.tokens, shared_.targets, shared_.document_starts, blocks_.front().forward.input});
  for (int layer = 1; layer <= options.layers; ++layer) forward(layer);
  head(training);
  if (training) backward();
  if (shape.use == ActivationUse::kGeneration) declare_caches();
}

LlamaActivationGraph::Id LlamaActivationGraph::declare(std::string name, DType dtype,
                                                       std::initializer_list<int64_t> dimensions) {
  tensors_.emplace_back(nullptr, dtype, dimensions);
  PlannedTensor lifetime;
  lifetime.name = std::move(name);
  lifetime.bytes = static_cast<int64_t>(tensors_.back().bytes());
  lifetime.first_step = kUnused;
  lifetimes_.push_back(std::move(lifetime));
  return tensors_.size() - 1;
}

LlamaActivationGraph::Id LlamaActivationGraph::rows(std::string name, int64_t width) {
  return declare(std::move(name), options_.dtype, {tokens_, width});
}

void LlamaActivationGraph::declare_shared() {
  shared_ = empty<SharedOf>();
  shared_.tokens = declare("tokens", DType::kINT32, {tokens_});
  shared_.targets = declare("targets", DType::kINT32, {tokens_});
  if (attention_ == AttentionScope::kDocument) {
    shared_.document_starts = declare("starts of documents", DType::kINT32, {tokens_});
  }
  shared_.final_residual = rows("last residual stream", options_.hidden_size);
  shared_.final_inverse_rms = declare("last inverse rms", DType::kFP32, {tokens_});
  shared_.final_normed = rows("head's input", options_.hidden_size);
  shared_.logits = declare("logits of one token", DType::kFP32, {1, options_.vocab_size});
}

LlamaActivationGraph::Block LlamaActivationGraph::forward_block(int layer) {
  const LlamaOptions& o = options_;
  const auto name = [layer](const char* what) { return fmt::format("block {} {}", layer, what); };
  Block block = empty<BlockOf>();
  block.input = rows(name("input"), o.hidden_size);
  block.input_inverse_rms = declare(name("input's inverse rms"), DType::kFP32, {tokens_});
  block.attention_normed = rows(name("normed input"), o.hidden_size);
  block.qkv = rows(name("q, k, v"), o.qkv_width());
  block.attention = rows(name("attention"), o.attention_width());
  block.log_sum_exp = declare(name("log-sum-exp"), DType::kFP32, {tokens_, o.heads});
  block.attention_output = rows(name("attention's output"), o.hidden_size);
  block.middle = rows(name("middle"), o.hidden_size);
  block.middle_inverse_rms = declare(name("middle's inverse rms"), DType::kFP32, {tokens_});
  block.feed_forward_normed = rows(name("normed middle"), o.hidden_size);
  block.gate_up = rows(name("gate, up"), 2 * o.feed_forward_size);
  block.swiglu = rows(name("SwiGLU"), o.feed_forward_size);
  block.output = rows(name("feed-forward's output"), o.hidden_size);
  return block;
}

LlamaActivationGraph::Id LlamaActivationGraph::again(Id id) {
  tensors_.push_back(tensors_[id]);
  PlannedTensor lifetime = lifetimes_[id];
  lifetime.name += ", again";
  lifetime.first_step = kUnused;
  lifetimes_.push_back(std::move(lifetime));
  return tensors_.size() - 1;
}

LlamaActivationGraph::Block LlamaActivationGraph::recomputed_block(const Block& forward,
                                                                   int layer) {
  Block block = forward;
  if (recomputes(Recompute::kFull, layer)) {
    block.input_inverse_rms = again(forward.input_inverse_rms);
    block.attention_normed = again(forward.attention_normed);
    block.qkv = again(forward.qkv);
    block.attention = again(forward.attention);
    block.log_sum_exp = again(forward.log_sum_exp);
    block.attention_output = again(forward.attention_output);
    block.middle = again(forward.middle);
    block.middle_inverse_rms = again(forward.middle_inverse_rms);
  }
  if (recomputes(Recompute::kFeedForward, layer)) {
    block.feed_forward_normed = again(forward.feed_forward_normed);
    block.gate_up = again(forward.gate_up);
  }
  return block;
}

LlamaActivationGraph::Block LlamaActivationGraph::backward_block(const Block& recomputed,
                                                                 int layer) {
  Block block = recomputed;
  // The norms are computed once more even where a product was recomputed from their outputs: held
  // from there to here, these would lie beside the largest tensors of the block.
  if (recomputes(Recompute::kElementwise)) {
    block.attention_normed = again(recomputed.attention_normed);
    block.feed_forward_normed = again(recomputed.feed_forward_normed);
    block.swiglu = again(recomputed.swiglu);
  }
  block.attention_gradient =
      rows(fmt::format("block {} gradient of attention", layer), options_.attention_width());
  block.qkv_gradient =
      rows(fmt::format("block {} gradient of q, k, v", layer), options_.qkv_width());
  return block;
}

void LlamaActivationGraph::step(std::initializer_list<Id> touched) {
  for (const Id id : touched) {
    if (id == kNoTensor) continue;
    PlannedTensor& tensor = lifetimes_[id];
    if (tensor.first_step == kUnused) tensor.first_step = steps_;
    tensor.last_step = steps_;
  }
  ++steps_;
}

void LlamaActivationGraph::forward(int layer) {
  const Block& block = blocks_[static_cast<size_t>(layer - 1)].forward;
  if (layer == 1) {
    step({block.input, block.input_inverse_rms, block.attention_normed});
  } else {
    const Block& below = blocks_[static_cast<size_t>(layer - 2)].forward;
    step(
        {below.middle, below.output, block.input, block.input_inverse_rms, block.attention_normed});
  }
  attention_branch(block);
  middle_norm_and_gate_up(block);
  step({block.gate_up, block.swiglu});
  step({block.swiglu, block.output});
}

void LlamaActivationGraph::attention_branch(const Block& block) {
  step({block.attention_normed, block.qkv});
  step({block.qkv, shared_.document_starts});  // bias and rotation
  step({block.qkv, shared_.document_starts, block.attention, block.log_sum_exp});
  step({block.attention, block.attention_output});
}

void LlamaActivationGraph::middle_norm_and_gate_up(const Block& block) {
  step({block.input, block.attention_output, block.middle, block.middle_inverse_rms,
        block.feed_forward_normed});
  step({block.feed_forward_normed, block.gate_up});
}

void LlamaActivationGraph::head(bool training) {
  const Block& last = blocks_.back().forward;
  step({last.middle, last.output, shared_.final_residual, shared_.final_inverse_rms,
        shared_.final_normed});
  if (training) {
    shared_.hidden_gradient = rows("gradient of the head's input", options_.hidden_size);
    step({shared_.final_normed, shared_.targets, shared_.logits, shared_.hidden_gradient});
  } else {
    step({shared_.final_normed, shared_.targets, shared_.logits});
  }
}

void LlamaActivationGraph::backward() {
  shared_.residual_gradient = rows("gradient of the residual stream", options_.hidden_size);
  step({shared_.final_residual, shared_.final_inverse_rms, shared_.hidden_gradient,
        shared_.residual_gradient});
  for (int layer = options_.layers; layer >= 1; --layer) {
    BlockViewsOf<Id>& block = blocks_[static_cast<size_t>(layer - 1)];
    block.recompute = recomputed_block(block.forward, layer);
    block.backward = backward_block(block.recompute, layer);
    recompute(block.recompute, layer);
    backward_feed_forward(block.backward);
    backward_attention(block.backward);
  }
  step({shared_.tokens, shared_.targets, shared_.residual_gradient});
}

void LlamaActivationGraph::recompute(const Block& block, int layer) {
  if (recomputes(Recompute::kFull, layer)) {
    step({block.input, block.input_inverse_rms, block.attention_normed});
    attention_branch(block);
    middle_norm_and_gate_up(block);
  } else if (recomputes(Recompute::kFeedForward, layer)) {
    step({block.middle, block.middle_inverse_rms, block.feed_forward_normed});
    step({block.feed_forward_normed, block.gate_up});
  }
}

void LlamaActivationGraph::backward_feed_forward(const Block& block) {
  if (recomputes(Recompute::kElementwise)) step({block.gate_up, block.swiglu});
  projection_backward(block.swiglu, shared_.residual_gradient, block.swiglu);
  step({block.gate_up, block.swiglu});
  if (recomputes(Recompute::kElementwise)) {
    step({block.middle, block.middle_inverse_rms, block.feed_forward_normed});
  }
  projection_backward(block.feed_forward_normed, block.gate_up, block.feed_forward_normed);
  step({shared_.residual_gradient, block.feed_forward_normed, block.middle,
        block.middle_inverse_rms});
}

void LlamaActivationGraph::backward_attention(const Block& block) {
  projection_backward(block.attention_gradient, shared_.residual_gradient, block.attention);
  step({block.qkv_gradient, block.attention_gradient, block.attention, block.log_sum_exp, block.qkv,
        shared_.document_starts});
  step({block.qkv_gradient, shared_.document_starts});  // rotation
  if (options_.qkv_bias) step({block.qkv_gradient});
  if (recomputes(Recompute::kElementwise)) {
    step({block.input, block.input_inverse_rms, block.attention_normed});
  }
  projection_backward(block.attention_normed, block.qkv_gradient, block.attention_normed);
  step({shared_.residual_gradient, block.attention_normed, block.input, block.input_inverse_rms});
}

void LlamaActivationGraph::projection_backward(Id grad_x, Id grad_out, Id x) {
  step({grad_out, x});
  step({grad_out, grad_x});
}

void LlamaActivationGraph::declare_caches() {
  const int64_t width = 2 * int64_t{options_.kv_heads} * options_.head_dim;
  for (int layer = 1; layer <= options_.layers; ++layer) {
    caches_.push_back(
        declare(fmt::format("block {} cache", layer), options_.dtype, {tokens_, width}));
    lifetimes_.back().first_step = 0;  // from one pass to the next
    lifetimes_.back().last_step = steps_ - 1;
  }
}

}  // namespace flashshard
