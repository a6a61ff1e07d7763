// One text: its prompt is read at once, every further token alone. A model made for generation
// keeps the rotated keys and the values of all positions, so a token costs one row of each product
// and one row of attention.
#include <fmt/format.h>

#include "kernels/error.h"
#include "runtime/model/llama.h"

namespace flashshard {

std::vector<float> Llama::next_token_logits(std::span<const int32_t> tokens) {
  require(weights_bound_, "no weights are bound");
  const auto count = static_cast<int64_t>(tokens.size());
  require(count >= 1 && count <= maximum_sequence_length(),
          fmt::format("{} tokens were given, the plan is for 1 to {}", count,
                      maximum_sequence_length()));
  check_tokens(tokens, 0, "input");
  Pass pass = begin(1, count);
  pass.fills_cache = has_cache();
  backend_.copy(pass.shared.tokens.data, tokens.data(), tokens.size_bytes());
  return logits_of(pass);
}

std::vector<float> Llama::continue_with(int32_t token) {
  require(remembered_tokens_ >= 1 && remembered_tokens_ < maximum_sequence_length(),
          fmt::format("a token cannot follow {} remembered ones of at most {}", remembered_tokens_,
                      maximum_sequence_length()));
  const std::span<const int32_t> tokens(&token, 1);
  check_tokens(tokens, 0, "input");
  Pass pass = begin(1, 1);
  pass.fills_cache = true;
  pass.first_position = remembered_tokens_;
  backend_.copy(pass.shared.tokens.data, tokens.data(), tokens.size_bytes());
  return logits_of(pass);
}

std::vector<float> Llama::logits_of(const Pass& pass) {
  // Nothing is remembered while the cache is between two texts.
  remembered_tokens_ = 0;
  forward(pass, {});
  const int64_t last = pass.tokens - 1;
  forward_final_norm(pass, last, {});
  project(pass.shared.logits, pass.shared.final_normed.row_range(last, 1), weights_.head);
  std::vector<float> logits(static_cast<size_t>(options_.vocab_size));
  backend_.copy(logits.data(), pass.shared.logits.data, pass.shared.logits.bytes());
  backend_.synchronize();
  if (pass.fills_cache) remembered_tokens_ = pass.first_position + pass.tokens;
  return logits;
}

void Llama::remember(const Pass& pass, const Tensor& qkv, int layer) {
  const Tensor& cache = activations_.cache(layer);
  const size_t row_bytes = static_cast<size_t>(cache.cols()) * size_of(cache.dtype);
  const size_t query_bytes = static_cast<size_t>(options_.attention_width()) * size_of(qkv.dtype);
  for (int64_t t = 0; t < pass.tokens; ++t) {
    const auto* row = qkv.row_range(t, 1).as<const std::byte>();
    backend_.copy(cache.row_range(pass.first_position + t, 1).data, row + query_bytes, row_bytes);
  }
}

void Llama::attend_to_cache(const Pass& pass, const BlockActivations& block, int layer) {
  const Tensor& cache = activations_.cache(layer);
  backend_.attention_decode({.out = block.attention,
                             .qkv = block.qkv,
                             .keys_values = cache.row_range(0, pass.first_position + 1),
                             .heads = options_.heads,
                             .kv_heads = options_.kv_heads,
                             .head_dim = options_.head_dim});
}

}  // namespace flashshard
