#include "runtime/model/llama_activations.h"

#include <algorithm>
#include <initializer_list>

namespace flashshard {
namespace {

constexpr int64_t kScratchAlignment = 256;

int64_t aligned(int64_t bytes) {
  return (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
}

/// The groups of tensors that take turns in the scratch region, as bytes of each tensor.
struct ScratchPlan {
  int64_t swiglu, attention_gradient, qkv_gradient, hidden, logits;

  ScratchPlan(const LlamaOptions& o, int64_t tokens) {
    const auto element = static_cast<int64_t>(size_of(o.dtype));
    swiglu = aligned(tokens * o.feed_forward_size * element);
    attention_gradient = aligned(tokens * o.attention_width() * element);
    qkv_gradient = aligned(tokens * o.qkv_width() * element);
    hidden = aligned(tokens * o.hidden_size * element);
    logits = aligned(o.vocab_size * static_cast<int64_t>(sizeof(float)));
  }
  int64_t bytes() const {
    return std::max({swiglu, attention_gradient + qkv_gradient, 2 * hidden, logits});
  }
};

int64_t blocks_kept(const LlamaOptions& options, ActivationUse use) {
  return use == ActivationUse::kTraining ? options.layers : 1;
}

BlockActivations allocate_block(MemoryLedger& ledger, const LlamaOptions& o, int64_t tokens) {
  const auto allocate = [&](DType dtype, std::initializer_list<int64_t> dimensions) {
    return ledger.tensor(MemoryClass::kActivations, dtype, dimensions);
  };
  BlockActivations block;
  block.input = allocate(o.dtype, {tokens, o.hidden_size});
  block.input_inverse_rms = allocate(DType::kFP32, {tokens});
  block.qkv = allocate(o.dtype, {tokens, o.qkv_width()});
  block.attention = allocate(o.dtype, {tokens, o.attention_width()});
  block.log_sum_exp = allocate(DType::kFP32, {tokens, o.heads});
  block.middle = allocate(o.dtype, {tokens, o.hidden_size});
  block.middle_inverse_rms = allocate(DType::kFP32, {tokens});
  block.gate_up = allocate(o.dtype, {tokens, 2 * o.feed_forward_size});
  return block;
}

}  // namespace

int64_t activation_bytes(const LlamaOptions& o, const ActivationShape& shape) {
  const auto element = static_cast<int64_t>(size_of(o.dtype));
  const int64_t per_block_token = element * (2 * o.hidden_size + o.qkv_width() +
                                             o.attention_width() + 2 * o.feed_forward_size) +
                                  int64_t{sizeof(float)} * (2 + o.heads);
  const int64_t shared_token =
      2 * element * o.hidden_size + int64_t{sizeof(float)} + 2 * int64_t{sizeof(int32_t)};
  return shape.tokens() * (blocks_kept(o, shape.use) * per_block_token + shared_token) +
         ScratchPlan(o, shape.tokens()).bytes();
}

BlockActivations BlockActivations::first(int64_t tokens) const {
  return {.input = input.row_range(0, tokens),
          .input_inverse_rms = input_inverse_rms.row_range(0, tokens),
          .qkv = qkv.row_range(0, tokens),
          .attention = attention.row_range(0, tokens),
          .log_sum_exp = log_sum_exp.row_range(0, tokens),
          .middle = middle.row_range(0, tokens),
          .middle_inverse_rms = middle_inverse_rms.row_range(0, tokens),
          .gate_up = gate_up.row_range(0, tokens)};
}

SharedActivations SharedActivations::first(int64_t count) const {
  return {.tokens = tokens.row_range(0, count),
          .targets = targets.row_range(0, count),
          .normed = normed.row_range(0, count),
          .branch_output = branch_output.row_range(0, count),
          .residual_gradient = residual_gradient.row_range(0, count),
          .final_inverse_rms = final_inverse_rms.row_range(0, count),
          .swiglu = swiglu.row_range(0, count),
          .attention_gradient = attention_gradient.row_range(0, count),
          .qkv_gradient = qkv_gradient.row_range(0, count),
          .final_residual = final_residual.row_range(0, count),
          .hidden_gradient = hidden_gradient.row_range(0, count),
          .logits = logits};
}

LlamaActivations::LlamaActivations(MemoryLedger& ledger, const LlamaOptions& o,
                                   const ActivationShape& shape)
    : shape_(shape) {
  const int64_t tokens = shape.tokens();
  const auto allocate = [&](DType dtype, std::initializer_list<int64_t> dimensions) {
    return ledger.tensor(MemoryClass::kActivations, dtype, dimensions);
  };
  for (int64_t i = 0; i < blocks_kept(o, shape.use); ++i) {
    blocks_.push_back(allocate_block(ledger, o, tokens));
  }
  shared_.tokens = allocate(DType::kINT32, {tokens});
  shared_.targets = allocate(DType::kINT32, {tokens});
  shared_.normed = allocate(o.dtype, {tokens, o.hidden_size});
  shared_.branch_output = allocate(o.dtype, {tokens, o.hidden_size});
  shared_.residual_gradient = shared_.branch_output;
  shared_.final_inverse_rms = allocate(DType::kFP32, {tokens});

  const ScratchPlan plan(o, tokens);
  auto* scratch = static_cast<std::byte*>(
      ledger.allocate(MemoryClass::kActivations, static_cast<size_t>(plan.bytes())));
  shared_.swiglu = Tensor(scratch, o.dtype, {tokens, o.feed_forward_size});
  shared_.attention_gradient = Tensor(scratch, o.dtype, {tokens, o.attention_width()});
  shared_.qkv_gradient =
      Tensor(scratch + plan.attention_gradient, o.dtype, {tokens, o.qkv_width()});
  shared_.final_residual = Tensor(scratch, o.dtype, {tokens, o.hidden_size});
  shared_.hidden_gradient = Tensor(scratch + plan.hidden, o.dtype, {tokens, o.hidden_size});
  shared_.logits = Tensor(scratch, DType::kFP32, {1, o.vocab_size});
}

}  // namespace flashshard
