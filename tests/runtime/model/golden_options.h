// The options of a model as the golden files state them (golden/make_llama.py).
#pragma once

#include <nlohmann/json.hpp>

#include "runtime/model/llama_options.h"

namespace flashshard {

inline LlamaOptions golden_options(const nlohmann::json& golden, DType dtype) {
  LlamaOptions options;
  options.vocab_size = golden["vocab_size"];
  options.hidden_size = golden["hidden_size"];
  options.layers = golden["layers"];
  options.heads = golden["heads"];
  options.kv_heads = golden["kv_heads"];
  options.head_dim = golden["head_dim"];
  options.feed_forward_size = golden["feed_forward_size"];
  options.rope_theta = golden["rope_theta"];
  options.norm_epsilon = golden["norm_epsilon"];
  options.qkv_bias = golden["qkv_bias"];
  options.tied_embeddings = golden["tied_embeddings"];
  options.dtype = dtype;
  if (golden.contains("rope_scaling")) {
    const auto& scaling = golden["rope_scaling"];
    options.rope_scaling = {.kind = RopeScaling::Kind::kLlama3,
                            .factor = scaling["factor"],
                            .low_frequency_factor = scaling["low_frequency_factor"],
                            .high_frequency_factor = scaling["high_frequency_factor"],
                            .original_positions = scaling["original_positions"]};
  }
  return options;
}

}  // namespace flashshard
