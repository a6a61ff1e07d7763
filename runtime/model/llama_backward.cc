// The backward pass, of the sum of token losses. `residual_gradient` is the gradient of the
// residual stream; each branch adds its own through the norm at its entrance. Normed inputs and
// SwiGLU outputs are recomputed (llama_activations.h).
#include "runtime/model/llama.h"

namespace flashshard {

void Llama::clear(const Pass& pass, const Tensor& gradient) {
  if (!pass.accumulate) backend_.zero(gradient.data, gradient.bytes());
}

void Llama::project_backward(const Tensor& grad_x, const Tensor& gradient, const Tensor& grad_out,
                             const Tensor& x, const Tensor& weight, bool accumulate) {
  backend_.matmul(
      {.out = gradient, .a = grad_out, .b = x, .transpose_a = true, .accumulate = accumulate});
  backend_.matmul({.out = grad_x, .a = grad_out, .b = weight});
}

void Llama::backward(const Pass& pass, const LayerHooks& hooks) {
  backward_final_norm(pass);
  hooks.call_after_layer_backward(options_.layers + 1);
  for (int layer = options_.layers; layer >= 1; --layer) {
    hooks.call_before_layer(layer);
    backward_feed_forward(pass, layer);
    backward_attention(pass, layer);
    hooks.call_after_layer_backward(layer);
  }
  backward_embedding(pass);
  hooks.call_after_layer_backward(0);
}

void Llama::backward_final_norm(const Pass& pass) {
  const SharedActivations& shared = pass.shared;
  backend_.zero(shared.residual_gradient.data, shared.residual_gradient.bytes());
  clear(pass, gradients_.final_norm);
  backend_.rmsnorm_backward({.grad_x = shared.residual_gradient,
                             .grad_weight = gradients_.final_norm,
                             .grad_out = shared.hidden_gradient,
                             .x = shared.final_residual,
                             .inverse_rms = shared.final_inverse_rms,
                             .weight = weights_.final_norm});
}

void Llama::backward_feed_forward(const Pass& pass, int layer) {
  const SharedActivations& shared = pass.shared;
  const BlockActivations block = block_of(pass, layer);
  const BlockTensors& weights = weights_of(layer);
  const BlockTensors& gradients = gradients_of(layer);

  backend_.swiglu({.out = shared.swiglu, .gate_up = block.gate_up});
  project_backward(shared.swiglu, gradients.down_projection, shared.residual_gradient,
                   shared.swiglu, weights.down_projection, pass.accumulate);
  backend_.swiglu_backward(
      {.grad_gate_up = block.gate_up, .grad_out = shared.swiglu, .gate_up = block.gate_up});

  normalise(shared.normed, block.middle_inverse_rms, block.middle, weights.post_attention_norm);
  project_backward(shared.normed, gradients.gate_up_projection, block.gate_up, shared.normed,
                   weights.gate_up_projection, pass.accumulate);
  clear(pass, gradients.post_attention_norm);
  backend_.rmsnorm_backward({.grad_x = shared.residual_gradient,
                             .grad_weight = gradients.post_attention_norm,
                             .grad_out = shared.normed,
                             .x = block.middle,
                             .inverse_rms = block.middle_inverse_rms,
                             .weight = weights.post_attention_norm});
}

void Llama::backward_attention(const Pass& pass, int layer) {
  const SharedActivations& shared = pass.shared;
  const BlockActivations block = block_of(pass, layer);
  const BlockTensors& weights = weights_of(layer);
  const BlockTensors& gradients = gradients_of(layer);

  project_backward(shared.attention_gradient, gradients.output_projection, shared.residual_gradient,
                   block.attention, weights.output_projection, pass.accumulate);
  backend_.attention_backward({.grad_qkv = shared.qkv_gradient,
                               .grad_out = shared.attention_gradient,
                               .out = block.attention,
                               .log_sum_exp = block.log_sum_exp,
                               .qkv = block.qkv,
                               .shape = pass.attention});
  Rope unrotate = rope_of(pass, shared.qkv_gradient);
  unrotate.inverse = true;
  backend_.rope(unrotate);
  if (options_.qkv_bias) {
    clear(pass, gradients.qkv_bias);
    backend_.bias_backward({.grad_bias = gradients.qkv_bias, .grad_out = shared.qkv_gradient});
  }

  normalise(shared.normed, block.input_inverse_rms, block.input, weights.input_norm);
  project_backward(shared.normed, gradients.qkv_projection, shared.qkv_gradient, shared.normed,
                   weights.qkv_projection, pass.accumulate);
  clear(pass, gradients.input_norm);
  backend_.rmsnorm_backward({.grad_x = shared.residual_gradient,
                             .grad_weight = gradients.input_norm,
                             .grad_out = shared.normed,
                             .x = block.input,
                             .inverse_rms = block.input_inverse_rms,
                             .weight = weights.input_norm});
}

void Llama::backward_embedding(const Pass& pass) {
  // A tied table already holds the head's gradient.
  if (!options_.tied_embeddings) clear(pass, gradients_.embedding);
  backend_.embedding_backward({.grad_table = gradients_.embedding,
                               .grad_out = pass.shared.residual_gradient,
                               .tokens = pass.shared.tokens});
}

}  // namespace flashshard
