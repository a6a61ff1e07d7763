// A Llama's construction, binding, checks and entry points for batches; llama_forward.cc and
// llama_backward.cc have the passes, llama_generate.cc reads one text.
#include "runtime/model/llama.h"

#include <fmt/format.h>

#include <string_view>

#include "kernels/error.h"
#include "runtime/model/rope_table.h"

namespace flashshard {
namespace {

const LlamaOptions& validated(const LlamaOptions& options) {
  validate(options);
  return options;
}

const ActivationShape& validated(const ActivationShape& shape, const LlamaOptions& options) {
  if (shape.sequences < 1 || shape.sequence_length < 1) {
    throw Error(ExitCode::kUsage,
                fmt::format("a micro-batch of {} sequences of {} tokens is empty", shape.sequences,
                            shape.sequence_length),
                "train.micro_batch, train.sequence_length", "both must be at least 1");
  }
  const int64_t positions = options.max_position_embeddings;
  if (positions > 0 && shape.sequence_length > positions) {
    throw Error(ExitCode::kUsage,
                fmt::format("a sequence of {} tokens is longer than the model's {} positions",
                            shape.sequence_length, positions),
                "train.sequence_length, model.max_position_embeddings", "take shorter sequences");
  }
  return shape;
}

}  // namespace

Llama::Llama(MemoryLedger& ledger, const LlamaOptions& options, const ActivationShape& shape)
    : backend_(ledger.backend()),
      options_(validated(options)),
      parameters_(llama_parameters(options)),
      activations_(ledger, options, validated(shape, options)),
      workspace_size_(llama_workspace_bytes(backend_, options, shape)),
      workspace_(ledger.allocate(MemoryClass::kOther, workspace_size_)) {
  cosine_sine_ =
      ledger.tensor(MemoryClass::kOther, DType::kFP32, {shape.sequence_length, options.head_dim});
  const std::vector<float> table =
      rope_table(shape.sequence_length, options.head_dim, options.rope_theta, options.rope_scaling);
  backend_.copy(cosine_sine_.data, table.data(), cosine_sine_.bytes());
  backend_.synchronize();
}

void Llama::require(bool holds, std::string_view what) {
  if (!holds) throw Error(ExitCode::kInternal, std::string(what), "Llama");
}

void Llama::bind(std::span<const Tensor> weights, std::span<const Tensor> gradients) {
  check_bound(weights, false);
  if (!gradients.empty()) check_bound(gradients, true);
  weights_ = arrange(weights);
  gradients_ = gradients.empty() ? ModelTensors{} : arrange(gradients);
  weights_bound_ = true;
  gradients_bound_ = !gradients.empty();
  remembered_tokens_ = 0;  // of the old weights
}

void Llama::check_bound(std::span<const Tensor> tensors, bool gradients) const {
  const std::string_view kind = gradients ? "gradient" : "weight";
  require(
      tensors.size() == parameters_.size(),
      fmt::format("{} {}s were bound to {} parameters", tensors.size(), kind, parameters_.size()));
  const DType dtype = gradients ? tensors.front().dtype : options_.dtype;
  require(dtype == DType::kBF16 || dtype == DType::kFP32,
          fmt::format("a {} must be bf16 or fp32", kind));
  for (size_t i = 0; i < tensors.size(); ++i) {
    const ParameterSpec& parameter = parameters_[i];
    const Tensor& tensor = tensors[i];
    require(tensor && tensor.rows() == parameter.rows && tensor.cols() == parameter.cols &&
                tensor.dtype == dtype,
            fmt::format("the {} bound to {} has another shape or dtype", kind, parameter.name));
  }
}

Llama::ModelTensors Llama::arrange(std::span<const Tensor> tensors) const {
  const auto matrix = [&](int index) { return tensors[static_cast<size_t>(index)]; };
  const auto vector = [&](int index) {
    const Tensor t = matrix(index);
    return Tensor(t.data, t.dtype, {t.elements()});
  };
  ModelTensors result;
  result.embedding = matrix(kLlamaEmbedding);
  for (int layer = 1; layer <= options_.layers; ++layer) {
    const int first = llama_block_tensor(options_, layer);
    result.blocks.push_back({.input_norm = vector(first + kInputNorm),
                             .qkv_projection = matrix(first + kQkvProjection),
                             .output_projection = matrix(first + kOutputProjection),
                             .post_attention_norm = vector(first + kPostAttentionNorm),
                             .gate_up_projection = matrix(first + kGateUpProjection),
                             .down_projection = matrix(first + kDownProjection),
                             .qkv_bias = options_.qkv_bias ? vector(first + kQkvBias) : Tensor()});
  }
  const int after_blocks = llama_block_tensor(options_, options_.layers + 1);
  result.final_norm = vector(after_blocks);
  result.head = options_.tied_embeddings ? result.embedding : matrix(after_blocks + 1);
  return result;
}

void Llama::check_tokens(std::span<const int32_t> tokens, int32_t lowest,
                         std::string_view what) const {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < lowest || tokens[i] >= options_.vocab_size) {
      throw Error(ExitCode::kBadData,
                  fmt::format("{} token {} lies outside the vocabulary of {}", what, tokens[i],
                              options_.vocab_size),
                  fmt::format("position {} of the micro-batch", i),
                  "the data was prepared with a larger vocabulary than the model's; set "
                  "model.vocab_size to the data's");
    }
  }
}

void Llama::check_batch(const MicroBatchView& batch) const {
  require(weights_bound_, "no weights are bound");
  const ActivationShape& planned = activations_.shape();
  require(batch.sequences >= 1 && batch.sequence_length >= 1 &&
              batch.sequences <= planned.sequences &&
              batch.sequence_length <= planned.sequence_length,
          fmt::format("a micro-batch of {} x {} tokens does not fit into the planned {} x {}",
                      batch.sequences, batch.sequence_length, planned.sequences,
                      planned.sequence_length));
  const auto tokens = static_cast<size_t>(batch.sequences * batch.sequence_length);
  require(batch.inputs.size() == tokens && batch.targets.size() == tokens,
          "inputs and targets do not have sequences x sequence_length tokens");
  check_tokens(batch.inputs, 0, "input");
  check_tokens(batch.targets, -1, "target");
  if (!batch.document_starts.empty()) check_documents(batch);
}

void Llama::check_documents(const MicroBatchView& batch) const {
  require(activations_.shape().attention == AttentionScope::kDocument,
          "starts of documents were given to a model that was not planned for them");
  require(batch.document_starts.size() == batch.inputs.size(),
          "there are not as many starts of documents as tokens");
  int32_t before = 0;
  for (size_t i = 0; i < batch.document_starts.size(); ++i) {
    const auto index = static_cast<int32_t>(i % static_cast<size_t>(batch.sequence_length));
    const int32_t start = batch.document_starts[i];
    require(start == index || (index > 0 && start == before),
            fmt::format("the document of token {} begins at {}, the one before it at {}", index,
                        start, before));
    before = start;
  }
}

Llama::Pass Llama::begin(int64_t sequences, int64_t sequence_length) {
  // Another model may have bound its own workspace since the last call.
  backend_.bind_workspace(workspace_, workspace_size_);
  Pass pass;
  pass.tokens = sequences * sequence_length;
  pass.shared = first_rows(activations_.shared(), pass.tokens);
  pass.attention = {.sequences = sequences,
                    .sequence_length = sequence_length,
                    .heads = options_.heads,
                    .kv_heads = options_.kv_heads,
                    .head_dim = options_.head_dim};
  return pass;
}

Llama::Pass Llama::begin(const MicroBatchView& batch) {
  Pass pass = begin(batch.sequences, batch.sequence_length);
  if (!batch.document_starts.empty()) pass.document_starts = pass.shared.document_starts;
  return pass;
}

LossResult Llama::forward_backward(const MicroBatchView& batch, const LayerHooks& hooks,
                                   bool accumulate) {
  check_batch(batch);
  require(gradients_bound_ && activations_.shape().use == ActivationUse::kTraining,
          "a backward needs bound gradients and activations planned for training");
  require(!accumulate || gradients_.embedding.dtype == DType::kFP32,
          "only fp32 gradients accumulate; bf16 would lose small increments");
  Pass pass = begin(batch);
  pass.accumulate = accumulate;
  load(batch, pass);
  forward(pass, hooks);
  forward_final_norm(pass, 0, hooks);

  // Head and loss run forward and backward in one call: the logits never exist all at once.
  LossResult result;
  backend_.cross_entropy({.loss_sum = &result.loss_sum,
                          .token_count = &result.token_count,
                          .hidden = pass.shared.final_normed,
                          .weight = weights_.head,
                          .targets = pass.shared.targets,
                          .grad_hidden = pass.shared.hidden_gradient,
                          .grad_weight = gradients_.head,
                          .accumulate_weight = accumulate});
  backward(pass, hooks);
  return result;
}

LossResult Llama::evaluate(const MicroBatchView& batch, const LayerHooks& hooks) {
  check_batch(batch);
  const Pass pass = begin(batch);
  load(batch, pass);
  forward(pass, hooks);
  forward_final_norm(pass, 0, hooks);
  CrossEntropy loss;
  LossResult result;
  loss.loss_sum = &result.loss_sum;
  loss.token_count = &result.token_count;
  loss.hidden = pass.shared.final_normed;
  loss.weight = weights_.head;
  loss.targets = pass.shared.targets;
  backend_.cross_entropy(loss);
  return result;
}

}  // namespace flashshard
