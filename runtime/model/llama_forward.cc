// The forward pass. Residual additions are part of the norm that follows them, so a branch's output
// waits in a buffer of its own and every norm writes both the new residual stream and its normed
// value. An operation more, fewer or elsewhere changes llama_activation_graph.cc too.
#include "runtime/model/llama.h"

namespace flashshard {

void Llama::load(const MicroBatchView& batch, const Pass& pass) {
  backend_.copy(pass.shared.tokens.data, batch.inputs.data(), batch.inputs.size_bytes());
  backend_.copy(pass.shared.targets.data, batch.targets.data(), batch.targets.size_bytes());
  if (pass.document_starts) {
    backend_.copy(pass.document_starts.data, batch.document_starts.data(),
                  batch.document_starts.size_bytes());
  }
}

void Llama::project(const Tensor& out, const Tensor& x, const Tensor& weight) {
  backend_.matmul({.out = out, .a = x, .b = weight, .transpose_b = true});
}

void Llama::normalise(const Tensor& out, const Tensor& inverse_rms, const Tensor& x,
                      const Tensor& weight) {
  RmsNormForward call;
  call.out = out;
  call.inverse_rms = inverse_rms;
  call.x = x;
  call.weight = weight;
  call.epsilon = static_cast<float>(options_.norm_epsilon);
  backend_.rmsnorm(call);
}

Rope Llama::rope_of(const Pass& pass, const Tensor& qkv) const {
  return {.qkv = qkv,
          .cosine_sine = cosine_sine_,
          .document_starts = pass.document_starts,
          .sequence_length = pass.attention.sequence_length,
          .first_position = pass.first_position,
          .heads = options_.heads,
          .kv_heads = options_.kv_heads,
          .head_dim = options_.head_dim};
}

void Llama::forward(const Pass& pass, const LayerHooks& hooks) {
  hooks.call_before_layer(0);
  backend_.embedding({.out = activations_.block(1).forward.input.row_range(0, pass.tokens),
                      .table = weights_.embedding,
                      .tokens = pass.shared.tokens});
  for (int layer = 1; layer <= options_.layers; ++layer) {
    hooks.call_before_layer(layer);
    const BackendRange range(backend_, "forward of layer", layer);
    const BlockActivations block = first_rows(activations_.block(layer).forward, pass.tokens);
    forward_input_norm(pass, block, layer);
    forward_attention(pass, block, layer);
    forward_middle_norm_and_gate_up(block, layer);
    backend_.swiglu({.out = block.swiglu, .gate_up = block.gate_up});
    project(block.output, block.swiglu, weights_of(layer).down_projection);
  }
}

void Llama::forward_input_norm(const Pass& pass, const BlockActivations& block, int layer) {
  const BlockTensors& weights = weights_of(layer);
  if (layer == 1) {  // the input is the embedding itself, no branch waits to be added
    normalise(block.attention_normed, block.input_inverse_rms, block.input, weights.input_norm);
    return;
  }
  const BlockActivations below = first_rows(activations_.block(layer - 1).forward, pass.tokens);
  backend_.rmsnorm({.out = block.attention_normed,
                    .inverse_rms = block.input_inverse_rms,
                    .sum = block.input,
                    .x = below.middle,
                    .delta = below.output,
                    .weight = weights.input_norm,
                    .epsilon = static_cast<float>(options_.norm_epsilon)});
}

void Llama::forward_attention(const Pass& pass, const BlockActivations& block, int layer) {
  const BlockTensors& weights = weights_of(layer);
  project(block.qkv, block.attention_normed, weights.qkv_projection);
  Rope rotate = rope_of(pass, block.qkv);
  rotate.bias = weights.qkv_bias;
  backend_.rope(rotate);
  if (pass.fills_cache) remember(pass, block.qkv, layer);
  if (pass.first_position > 0) {
    attend_to_cache(pass, block, layer);
  } else {
    backend_.attention({.out = block.attention,
                        .log_sum_exp = block.log_sum_exp,
                        .qkv = block.qkv,
                        .shape = pass.attention,
                        .document_starts = pass.document_starts});
  }
  project(block.attention_output, block.attention, weights.output_projection);
}

void Llama::forward_middle_norm_and_gate_up(const BlockActivations& block, int layer) {
  const BlockTensors& weights = weights_of(layer);
  backend_.rmsnorm({.out = block.feed_forward_normed,
                    .inverse_rms = block.middle_inverse_rms,
                    .sum = block.middle,
                    .x = block.input,
                    .delta = block.attention_output,
                    .weight = weights.post_attention_norm,
                    .epsilon = static_cast<float>(options_.norm_epsilon)});
  project(block.gate_up, block.feed_forward_normed, weights.gate_up_projection);
}

void Llama::forward_final_norm(const Pass& pass, int64_t first, const LayerHooks& hooks) {
  if (options_.tied_embeddings) hooks.call_before_layer(0);
  hooks.call_before_layer(options_.layers + 1);
  const int64_t count = pass.tokens - first;
  const BlockActivations last =
      first_rows(activations_.block(options_.layers).forward, pass.tokens);
  backend_.rmsnorm({.out = pass.shared.final_normed.row_range(first, count),
                    .inverse_rms = pass.shared.final_inverse_rms.row_range(first, count),
                    .sum = pass.shared.final_residual.row_range(first, count),
                    .x = last.middle.row_range(first, count),
                    .delta = last.output.row_range(first, count),
                    .weight = weights_.final_norm,
                    .epsilon = static_cast<float>(options_.norm_epsilon)});
}

}  // namespace flashshard
