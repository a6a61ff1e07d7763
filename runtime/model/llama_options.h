// The shape of a Llama decoder and all that follows from it: parameters, initial values, operations
// per token. Architecture: "LLaMA: Open and Efficient Foundation Language Models" (arXiv
// 2302.13971), grouped key/value heads from "GQA" (arXiv 2305.13245), biases of q, k and v from
// "Qwen2" (arXiv 2407.10671); parameter names and orientation as Hugging Face `LlamaForCausalLM`
// and `Qwen2ForCausalLM` have them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/tensor.h"
#include "optim/parameter_spec.h"
#include "runtime/model/initialize.h"
#include "runtime/model/rope_table.h"

namespace flashshard {

struct LlamaOptions {
  int64_t vocab_size = 0;         // V
  int64_t hidden_size = 0;        // H
  int layers = 0;                 // L
  int heads = 0;                  // A, query heads
  int kv_heads = 0;               // K, key and value heads; divides `heads`
  int head_dim = 0;               // D, even; A * D need not be H
  int64_t feed_forward_size = 0;  // F
  double rope_theta = 10000.0;    // base of the rotary frequencies
  RopeScaling rope_scaling;
  int64_t max_position_embeddings = 0;  // longest sequence; 0: no limit
  double norm_epsilon = 1e-5;
  bool qkv_bias = false;        // q, k and v have biases
  bool tied_embeddings = true;  // the head reads the embedding table
  double init_std = 0.02;
  DType dtype = DType::kBF16;  // of weights and activations: kBF16 or kFP32

  int64_t attention_width() const { return int64_t{heads} * head_dim; }
  /// Width of a row of q‖k‖v.
  int64_t qkv_width() const { return (int64_t{heads} + 2 * int64_t{kv_heads}) * head_dim; }
};

/// Throws Error(kUsage) naming the field that is out of range.
void validate(const LlamaOptions& options);

/// Where a block's parameters stand in the list, from `llama_block_tensor(options, layer)` on.
enum LlamaBlockTensor : int {
  kInputNorm,
  kQkvProjection,
  kOutputProjection,
  kPostAttentionNorm,
  kGateUpProjection,
  kDownProjection,
  kQkvBias,  // last, because not every model has it
};
/// Parameters of a block.
constexpr int llama_block_tensors(const LlamaOptions& options) {
  return options.qkv_bias ? kQkvBias + 1 : kDownProjection + 1;
}
constexpr int kLlamaEmbedding = 0;
/// Tensor number of the first parameter of block `layer`, 1 <= layer <= L + 1, where the final norm
/// stands at L + 1.
constexpr int llama_block_tensor(const LlamaOptions& options, int layer) {
  return 1 + (layer - 1) * llama_block_tensors(options);
}

/// Layer by layer in forward order: embedding, blocks (as in LlamaBlockTensor), final norm, and the
/// head unless it is tied.
std::vector<ParameterSpec> llama_parameters(const LlamaOptions& options);
/// V*H (twice when untied) + L * (H*Q + A*D*H + 3*F*H + 2*H) + H, and with biases L*Q more.
int64_t llama_parameter_count(const LlamaOptions& options);

/// Matrices normal(0, init_std), norms 1, biases 0; the projections that write into the residual
/// stream (o_proj, down_proj) have their deviation divided by sqrt(2 L), the number of such writes
/// (GPT-2, section 2.3).
Initialization llama_initialization(const LlamaOptions& options, int tensor);

/// 6 N + 12 L A D S for sequences of S tokens, S the sequence length: PaLM (arXiv 2204.02311),
/// appendix B. N are the parameters that a token is multiplied with or that are added to it: all
/// but the embedding lookup, the head included whether tied or not. Attention counts the full S x S
/// square, as is usual when utilisation is compared; recomputation does not count.
double llama_flops_per_token(const LlamaOptions& options, int64_t sequence_length);

}  // namespace flashshard
