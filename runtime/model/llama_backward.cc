// The backward pass, of the sum of token losses. `residual_gradient` is the gradient of the
// residual stream; each branch adds its own through the norm at its entrance. What was not kept is
// computed again first (Recompute), by the calls of the forward, hence with its bits. An operation
// more, fewer or elsewhere changes llama_activation_graph.cc too.
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
    backward_layer(pass, layer);
    hooks.call_after_layer_backward(layer);
  }
  backward_embedding(pass);
  hooks.call_after_layer_backward(0);
}

void Llama::backward_layer(const Pass& pass, int layer) {
  const BackendRange range(backend_, "backward of layer", layer);
  const BlockViewsOf<Tensor>& views = activations_.block(layer);
  recompute(pass, first_rows(views.recompute, pass.tokens), layer);
  const BlockActivations block = first_rows(views.backward, pass.tokens);
  backward_feed_forward(pass, block, layer);
  backward_attention(pass, block, layer);
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

void Llama::recompute(const Pass& pass, const BlockActivations& block, int layer) {
  if (layer == options_.layers) return;  // its products are still there
  const BlockTensors& weights = weights_of(layer);
  if (recomputes(Recompute::kFull)) {
    normalise(block.attention_normed, block.input_inverse_rms, block.input, weights.input_norm);
    forward_attention(pass, block, layer);
    forward_middle_norm_and_gate_up(block, layer);
  } else if (recomputes(Recompute::kFeedForward)) {
    normalise(block.feed_forward_normed, block.middle_inverse_rms, block.middle,
              weights.post_attention_norm);
    project(block.gate_up, block.feed_forward_normed, weights.gate_up_projection);
  }
}

void Llama::backward_feed_forward(const Pass& pass, const BlockActivations& block, int layer) {
  const Tensor& residual_gradient = pass.shared.residual_gradient;
  const BlockTensors& weights = weights_of(layer);
  const BlockTensors& gradients = gradients_of(layer);

  if (recomputes(Recompute::kElementwise)) {
    backend_.swiglu({.out = block.swiglu, .gate_up = block.gate_up});
  }
  project_backward(block.swiglu, gradients.down_projection, residual_gradient, block.swiglu,
                   weights.down_projection, pass.accumulate);
  backend_.swiglu_backward(
      {.grad_gate_up = block.gate_up, .grad_out = block.swiglu, .gate_up = block.gate_up});

  if (recomputes(Recompute::kElementwise)) {
    normalise(block.feed_forward_normed, block.middle_inverse_rms, block.middle,
              weights.post_attention_norm);
  }
  project_backward(block.feed_forward_normed, gradients.gate_up_projection, block.gate_up,
                   block.feed_forward_normed, weights.gate_up_projection, pass.accumulate);
  clear(pass, gradients.post_attention_norm);
  backend_.rmsnorm_backward({.grad_x = residual_gradient,
                             .grad_weight = gradients.post_attention_norm,
                             .grad_out = block.feed_forward_normed,
                             .x = block.middle,
                             .inverse_rms = block.middle_inverse_rms,
                             .weight = weights.post_attention_norm});
}

void Llama::backward_attention(const Pass& pass, const BlockActivations& block, int layer) {
  const Tensor& residual_gradient = pass.shared.residual_gradient;
  const BlockTensors& weights = weights_of(layer);
  const BlockTensors& gradients = gradients_of(layer);

  project_backward(block.attention_gradient, gradients.output_projection, residual_gradient,
                   block.attention, weights.output_projection, pass.accumulate);
  backend_.attention_backward({.grad_qkv = block.qkv_gradient,
                               .grad_out = block.attention_gradient,
                               .out = block.attention,
                               .log_sum_exp = block.log_sum_exp,
                               .qkv = block.qkv,
                               .shape = pass.attention,
                               .document_starts = pass.document_starts});
  Rope unrotate = rope_of(pass, block.qkv_gradient);
  unrotate.inverse = true;
  backend_.rope(unrotate);
  if (options_.qkv_bias) {
    clear(pass, gradients.qkv_bias);
    backend_.bias_backward({.grad_bias = gradients.qkv_bias, .grad_out = block.qkv_gradient});
  }

  if (recomputes(Recompute::kElementwise)) {
    normalise(block.attention_normed, block.input_inverse_rms, block.input, weights.input_norm);
  }
  project_backward(block.attention_normed, gradients.qkv_projection, block.qkv_gradient,
                   block.attention_normed, weights.qkv_projection, pass.accumulate);
  clear(pass, gradients.input_norm);
  backend_.rmsnorm_backward({.grad_x = residual_gradient,
                             .grad_weight = gradients.input_norm,
                             .grad_out = block.attention_normed,
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
