// The forward pass. Residual additions are part of the norm that follows them, so a branch's output
// waits in `branch_output` and every norm writes both the new residual stream and its normed value.
#include "runtime/model/llama.h"

namespace flashshard {

BlockActivations Llama::block_of(const Pass& pass, int layer) const {
  const BlockActivations& planned =
      pass.keeps_blocks ? activations_.block(layer) : activations_.any_block();
  return planned.first(pass.tokens);
}

void Llama::load(const MicroBatchView& batch, const Pass& pass) {
  backend_.copy(pass.shared.tokens.data, batch.inputs.data(), batch.inputs.size_bytes());
  backend_.copy(pass.shared.targets.data, batch.targets.data(), batch.targets.size_bytes());
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
          .sequence_length = pass.attention.sequence_length,
          .heads = options_.heads,
          .kv_heads = options_.kv_heads,
          .head_dim = options_.head_dim};
}

void Llama::forward(const Pass& pass, const LayerHooks& hooks) {
  hooks.call_before_layer(0);
  backend_.embedding(
      {.out = block_of(pass, 1).input, .table = weights_.embedding, .tokens = pass.shared.tokens});
  for (int layer = 1; layer <= options_.layers; ++layer) {
    hooks.call_before_layer(layer);
    forward_attention(pass, layer);
    forward_feed_forward(pass, layer);
  }
}

void Llama::forward_attention(const Pass& pass, int layer) {
  const BlockActivations block = block_of(pass, layer);
  const BlockTensors& weights = weights_of(layer);
  if (layer == 1) {  // the input is the embedding itself, no branch waits to be added
    normalise(pass.shared.normed, block.input_inverse_rms, block.input, weights.input_norm);
  } else {
    backend_.rmsnorm({.out = pass.shared.normed,
                      .inverse_rms = block.input_inverse_rms,
                      .sum = block.input,
                      .x = block_of(pass, layer - 1).middle,
                      .delta = pass.shared.branch_output,
                      .weight = weights.input_norm,
                      .epsilon = static_cast<float>(options_.norm_epsilon)});
  }
  project(block.qkv, pass.shared.normed, weights.qkv_projection);
  Rope rotate = rope_of(pass, block.qkv);
  rotate.bias = weights.qkv_bias;
  backend_.rope(rotate);
  backend_.attention({.out = block.attention,
                      .log_sum_exp = block.log_sum_exp,
                      .qkv = block.qkv,
                      .shape = pass.attention});
  project(pass.shared.branch_output, block.attention, weights.output_projection);
}

void Llama::forward_feed_forward(const Pass& pass, int layer) {
  const BlockActivations block = block_of(pass, layer);
  const BlockTensors& weights = weights_of(layer);
  backend_.rmsnorm({.out = pass.shared.normed,
                    .inverse_rms = block.middle_inverse_rms,
                    .sum = block.middle,
                    .x = block.input,
                    .delta = pass.shared.branch_output,
                    .weight = weights.post_attention_norm,
                    .epsilon = static_cast<float>(options_.norm_epsilon)});
  project(block.gate_up, pass.shared.normed, weights.gate_up_projection);
  backend_.swiglu({.out = pass.shared.swiglu, .gate_up = block.gate_up});
  project(pass.shared.branch_output, pass.shared.swiglu, weights.down_projection);
}

void Llama::forward_final_norm(const Pass& pass, int64_t first, const LayerHooks& hooks) {
  if (options_.tied_embeddings) hooks.call_before_layer(0);
  hooks.call_before_layer(options_.layers + 1);
  const int64_t count = pass.tokens - first;
  const BlockActivations last = block_of(pass, options_.layers);
  backend_.rmsnorm({.out = pass.shared.normed.row_range(first, count),
                    .inverse_rms = pass.shared.final_inverse_rms.row_range(first, count),
                    .sum = pass.shared.final_residual.row_range(first, count),
                    .x = last.middle.row_range(first, count),
                    .delta = pass.shared.branch_output.row_range(first, count),
                    .weight = weights_.final_norm,
                    .epsilon = static_cast<float>(options_.norm_epsilon)});
}

}  // namespace flashshard
