#include "runtime/model/llama_options.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "kernels/error.h"

namespace flashshard {
namespace {

// Sizes beyond these are typing errors; below them no product of two overflows int64.
constexpr int64_t kLargestVocabulary = std::numeric_limits<int32_t>::max();
constexpr int64_t kLargestWidth = int64_t{1} << 24;
constexpr int kLargestCount = 1 << 16;

void require(bool holds, std::string_view field, const std::string& what, std::string_view hint) {
  if (!holds) {
    throw Error(ExitCode::kUsage, what, fmt::format("model.{}", field), std::string(hint));
  }
}

void require_size(int64_t value, int64_t largest, std::string_view field) {
  require(value > 0 && value <= largest, field, fmt::format("{} is out of range", value),
          fmt::format("give a value from 1 to {}", largest));
}

ParameterSpec matrix(std::string name, int64_t rows, int64_t cols, int layer) {
  ParameterSpec spec;
  spec.name = std::move(name);
  spec.rows = rows;
  spec.cols = cols;
  spec.layer = layer;
  return spec;
}

// Norm gains are not decayed: decay pulls towards 0, their neutral value is 1. Neither are biases,
// as is usual.
ParameterSpec vector(std::string name, int64_t rows, int layer) {
  ParameterSpec spec = matrix(std::move(name), rows, 1, layer);
  spec.role = ParameterRole::kVector;
  spec.decay = false;
  return spec;
}

ParameterSpec embedding(std::string name, const LlamaOptions& options, int layer) {
  ParameterSpec spec = matrix(std::move(name), options.vocab_size, options.hidden_size, layer);
  spec.role = ParameterRole::kEmbedding;
  return spec;
}

ParameterSpec qkv_bias(const std::string& prefix, const LlamaOptions& o, int layer) {
  const int64_t q = o.attention_width();
  const int64_t kv = int64_t{o.kv_heads} * o.head_dim;
  ParameterSpec spec = vector(prefix + "self_attn.qkv_proj.bias", o.qkv_width(), layer);
  spec.parts = {{prefix + "self_attn.q_proj.bias", 0, q},
                {prefix + "self_attn.k_proj.bias", q, kv},
                {prefix + "self_attn.v_proj.bias", q + kv, kv}};
  return spec;
}

void append_block(const LlamaOptions& o, int layer, std::vector<ParameterSpec>& list) {
  const std::string prefix = fmt::format("model.layers.{}.", layer - 1);
  const int64_t q = o.attention_width();
  const int64_t kv = int64_t{o.kv_heads} * o.head_dim;

  list.push_back(vector(prefix + "input_layernorm.weight", o.hidden_size, layer));
  ParameterSpec qkv =
      matrix(prefix + "self_attn.qkv_proj.weight", o.qkv_width(), o.hidden_size, layer);
  qkv.parts = {{prefix + "self_attn.q_proj.weight", 0, q},
               {prefix + "self_attn.k_proj.weight", q, kv},
               {prefix + "self_attn.v_proj.weight", q + kv, kv}};
  list.push_back(std::move(qkv));
  list.push_back(matrix(prefix + "self_attn.o_proj.weight", o.hidden_size, q, layer));
  list.push_back(vector(prefix + "post_attention_layernorm.weight", o.hidden_size, layer));
  const int64_t f = o.feed_forward_size;
  ParameterSpec gate_up = matrix(prefix + "mlp.gate_up_proj.weight", 2 * f, o.hidden_size, layer);
  gate_up.parts = {{prefix + "mlp.gate_proj.weight", 0, f}, {prefix + "mlp.up_proj.weight", f, f}};
  list.push_back(std::move(gate_up));
  list.push_back(matrix(prefix + "mlp.down_proj.weight", o.hidden_size, f, layer));
  if (o.qkv_bias) list.push_back(qkv_bias(prefix, o, layer));
}

void require_scaling(const RopeScaling& s) {
  if (s.kind == RopeScaling::Kind::kNone) return;
  require(std::isfinite(s.factor) && s.factor >= 1, "rope_scaling_factor",
          fmt::format("{} is out of range", s.factor), "give a number from 1 on, e.g. 8");
  require(s.low_frequency_factor > 0 && s.low_frequency_factor < s.high_frequency_factor &&
              std::isfinite(s.high_frequency_factor),
          "rope_low_frequency_factor",
          fmt::format("{} is not between 0 and rope_high_frequency_factor {}",
                      s.low_frequency_factor, s.high_frequency_factor),
          "give e.g. 1 and 4");
  require(s.original_positions > 0, "rope_original_positions",
          fmt::format("{} is out of range", s.original_positions),
          "give the positions that the model was first trained on, e.g. 8192");
}

}  // namespace

void validate(const LlamaOptions& o) {
  require_size(o.vocab_size, kLargestVocabulary, "vocab_size");
  require_size(o.hidden_size, kLargestWidth, "hidden_size");
  require_size(o.layers, kLargestCount, "layers");
  require_size(o.heads, kLargestCount, "heads");
  require_size(o.kv_heads, kLargestCount, "kv_heads");
  require_size(o.head_dim, kLargestCount, "head_dim");
  require_size(o.feed_forward_size, kLargestWidth, "feed_forward_size");
  require(o.heads % o.kv_heads == 0, "kv_heads",
          fmt::format("{} query heads cannot share {} key/value heads evenly", o.heads, o.kv_heads),
          "kv_heads must divide heads");
  require(o.head_dim % 2 == 0, "head_dim", fmt::format("{} is odd", o.head_dim),
          "rotary embeddings rotate pairs, so head_dim must be even");
  require(std::isfinite(o.rope_theta) && o.rope_theta > 0, "rope_theta",
          fmt::format("{} is out of range", o.rope_theta), "give a positive number, e.g. 10000");
  require_scaling(o.rope_scaling);
  require(o.max_position_embeddings >= 0, "max_position_embeddings",
          fmt::format("{} is out of range", o.max_position_embeddings),
          "give the longest sequence of the model, or 0 for no limit");
  require(std::isfinite(o.norm_epsilon) && o.norm_epsilon > 0, "norm_epsilon",
          fmt::format("{} is out of range", o.norm_epsilon), "give a positive number, e.g. 1e-5");
  require(std::isfinite(o.init_std) && o.init_std >= 0, "init_std",
          fmt::format("{} is out of range", o.init_std), "give a number from 0 on, e.g. 0.02");
  require(o.dtype == DType::kBF16 || o.dtype == DType::kFP32, "dtype",
          "weights and activations cannot be integers", "choose BF16 or FP32");
}

std::vector<ParameterSpec> llama_parameters(const LlamaOptions& o) {
  std::vector<ParameterSpec> list;
  const int most = llama_block_tensor(o, o.layers + 1) + 2;  // with final norm and head
  list.reserve(static_cast<size_t>(most));
  list.push_back(embedding("model.embed_tokens.weight", o, 0));
  if (o.tied_embeddings) list.back().tied_names = {"lm_head.weight"};
  for (int layer = 1; layer <= o.layers; ++layer) append_block(o, layer, list);
  list.push_back(vector("model.norm.weight", o.hidden_size, o.layers + 1));
  if (!o.tied_embeddings) list.push_back(embedding("lm_head.weight", o, o.layers + 1));
  return list;
}

int64_t llama_parameter_count(const LlamaOptions& o) {
  const int64_t block =
      o.hidden_size * (o.qkv_width() + o.attention_width() + 3 * o.feed_forward_size + 2) +
      (o.qkv_bias ? o.qkv_width() : 0);
  const int64_t tables = (o.tied_embeddings ? 1 : 2) * o.vocab_size * o.hidden_size;
  return tables + o.layers * block + o.hidden_size;
}

Initialization llama_initialization(const LlamaOptions& o, int tensor) {
  const int first_after_blocks = llama_block_tensor(o, o.layers + 1);
  if (tensor == first_after_blocks) return {.mean = 1, .standard_deviation = 0};
  if (tensor == kLlamaEmbedding || tensor > first_after_blocks) {
    return {.mean = 0, .standard_deviation = o.init_std};
  }
  switch ((tensor - 1) % llama_block_tensors(o)) {
    case kInputNorm:
    case kPostAttentionNorm:
      return {.mean = 1, .standard_deviation = 0};
    case kQkvBias:
      return {.mean = 0, .standard_deviation = 0};
    case kOutputProjection:
    case kDownProjection:
      return {.mean = 0, .standard_deviation = o.init_std / std::sqrt(2.0 * o.layers)};
    default:
      return {.mean = 0, .standard_deviation = o.init_std};
  }
}

double llama_flops_per_token(const LlamaOptions& o, int64_t sequence_length) {
  // A tied table is counted once and used by the head; an untied input table is looked up, not
  // multiplied.
  const int64_t looked_up = o.tied_embeddings ? 0 : o.vocab_size * o.hidden_size;
  const auto multiplied = static_cast<double>(llama_parameter_count(o) - looked_up);
  return 6.0 * multiplied + 12.0 * o.layers * static_cast<double>(o.attention_width()) *
                                static_cast<double>(sequence_length);
}

}  // namespace flashshard
