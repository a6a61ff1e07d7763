// How much scratch memory the backend needs for a Llama: the maximum over every call that the model
// makes.
#include <algorithm>
#include <array>

#include "runtime/model/llama.h"

namespace flashshard {
namespace {

class WorkspaceMaximum {
 public:
  WorkspaceMaximum(const Backend& backend, const LlamaOptions& options,
                   const ActivationShape& shape)
      : backend_(backend), options_(options), shape_(shape), tokens_(shape.tokens()) {}

  size_t bytes() {
    const LlamaOptions& o = options_;
    add_linear(o.qkv_width(), o.hidden_size);
    add_linear(o.hidden_size, o.attention_width());
    add_linear(2 * o.feed_forward_size, o.hidden_size);
    add_linear(o.hidden_size, o.feed_forward_size);
    add(MatMul{.out = fp32({1, o.vocab_size}),
               .a = view({1, o.hidden_size}),
               .b = view({o.vocab_size, o.hidden_size}),
               .transpose_b = true});
    add_attention();
    add_head_and_norms();
    return maximum_;
  }

 private:
  using Shape = std::initializer_list<int64_t>;
  Tensor view(Shape shape) const { return {nullptr, options_.dtype, shape}; }
  static Tensor fp32(Shape shape) { return {nullptr, DType::kFP32, shape}; }
  static Tensor int32(Shape shape) { return {nullptr, DType::kINT32, shape}; }

  template <class Call>
  void add(const Call& call) {
    maximum_ = std::max(maximum_, backend_.workspace_bytes(call));
  }
  bool training() const { return shape_.use == ActivationUse::kTraining; }

  /// A projection (out, in) of T rows, forward and backward with either gradient dtype.
  void add_linear(int64_t out, int64_t in) {
    const Tensor x = view({tokens_, in}), y = view({tokens_, out}), weight = view({out, in});
    add(MatMul{.out = y, .a = x, .b = weight, .transpose_b = true});
    if (!training()) return;
    add(MatMul{.out = x, .a = y, .b = weight});
    for (const DType dtype : {DType::kBF16, DType::kFP32}) {
      for (const bool accumulate : {false, true}) {
        add(MatMul{.out = {nullptr, dtype, {out, in}},
                   .a = y,
                   .b = x,
                   .transpose_a = true,
                   .accumulate = accumulate});
      }
    }
  }

  void add_attention() {
    const LlamaOptions& o = options_;
    const AttentionShape shape{.sequences = shape_.sequences,
                               .sequence_length = shape_.sequence_length,
                               .heads = o.heads,
                               .kv_heads = o.kv_heads,
                               .head_dim = o.head_dim};
    const Tensor out = view({tokens_, o.attention_width()}), qkv = view({tokens_, o.qkv_width()});
    const Tensor log_sum_exp = fp32({tokens_, o.heads});
    add(AttentionForward{.out = out, .log_sum_exp = log_sum_exp, .qkv = qkv, .shape = shape});
    if (shape_.use == ActivationUse::kGeneration) {
      add(AttentionDecode{
          .out = view({1, o.attention_width()}),
          .qkv = view({1, o.qkv_width()}),
          .keys_values = view({tokens_, 2 * int64_t{o.kv_heads} * int64_t{o.head_dim}}),
          .heads = o.heads,
          .kv_heads = o.kv_heads,
          .head_dim = o.head_dim});
    }
    if (!training()) return;
    add(AttentionBackward{.grad_qkv = qkv,
                          .grad_out = out,
                          .out = out,
                          .log_sum_exp = log_sum_exp,
                          .qkv = qkv,
                          .shape = shape});
  }

  void add_head_and_norms() {
    const LlamaOptions& o = options_;
    const Tensor hidden = view({tokens_, o.hidden_size});
    CrossEntropy loss;
    loss.hidden = hidden;
    loss.weight = view({o.vocab_size, o.hidden_size});
    loss.targets = int32({tokens_});
    add(loss);
    if (!training()) return;
    for (const DType dtype : {DType::kBF16, DType::kFP32}) {
      const Tensor table{nullptr, dtype, {o.vocab_size, o.hidden_size}};
      loss.grad_hidden = hidden;
      loss.grad_weight = table;
      for (const bool accumulate : {false, true}) {
        loss.accumulate_weight = accumulate;
        add(loss);
      }
      add(EmbeddingBackward{.grad_table = table, .grad_out = hidden, .tokens = int32({tokens_})});
      add(RmsNormBackward{.grad_x = hidden,
                          .grad_weight = {nullptr, dtype, {o.hidden_size}},
                          .grad_out = hidden,
                          .x = hidden,
                          .inverse_rms = fp32({tokens_}),
                          .weight = view({o.hidden_size})});
      if (o.qkv_bias) {
        add(BiasBackward{.grad_bias = {nullptr, dtype, {o.qkv_width()}},
                         .grad_out = view({tokens_, o.qkv_width()})});
      }
    }
  }

  const Backend& backend_;
  const LlamaOptions& options_;
  const ActivationShape& shape_;
  int64_t tokens_;
  size_t maximum_ = 0;
};

}  // namespace

size_t llama_workspace_bytes(const Backend& backend, const LlamaOptions& options,
                             const ActivationShape& shape) {
  return WorkspaceMaximum(backend, options, shape).bytes();
}

int64_t llama_other_bytes(const Backend& backend, const LlamaOptions& options,
                          const ActivationShape& shape) {
  return static_cast<int64_t>(llama_workspace_bytes(backend, options, shape)) +
         shape.sequence_length * options.head_dim * static_cast<int64_t>(sizeof(float));
}

}  // namespace flashshard
