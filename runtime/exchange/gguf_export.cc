#include "runtime/exchange/gguf_export.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "runtime/exchange/gguf_header.h"
#include "runtime/exchange/gguf_vocabulary.h"
#include "runtime/model/rope_table.h"

namespace flashshard::exchange {
namespace {

using Names = std::pair<std::string_view, std::string_view>;  // Hugging Face's, llama.cpp's
constexpr std::array<Names, 3> kModelNames = {{{"model.embed_tokens.weight", "token_embd.weight"},
                                               {"model.norm.weight", "output_norm.weight"},
                                               {"lm_head.weight", "output.weight"}}};
constexpr std::array<Names, 9> kBlockNames = {{{"input_layernorm", "attn_norm"},
                                               {"post_attention_layernorm", "ffn_norm"},
                                               {"self_attn.q_proj", "attn_q"},
                                               {"self_attn.k_proj", "attn_k"},
                                               {"self_attn.v_proj", "attn_v"},
                                               {"self_attn.o_proj", "attn_output"},
                                               {"mlp.gate_proj", "ffn_gate"},
                                               {"mlp.up_proj", "ffn_up"},
                                               {"mlp.down_proj", "ffn_down"}}};
constexpr std::string_view kRopeFactors = "rope_freqs.weight";

// general.file_type
constexpr int64_t kAllF32 = 0;
constexpr int64_t kMostlyBf16 = 32;

/// "model.layers.7.mlp.up_proj.weight" -> "blk.7.ffn_up.weight"
std::string gguf_name(std::string_view name) {
  const auto in_model = std::ranges::find(kModelNames, name, &Names::first);
  if (in_model != kModelNames.end()) return std::string(in_model->second);
  constexpr std::string_view kLayers = "model.layers.";
  const std::string_view rest = name.substr(kLayers.size());
  const size_t dot = rest.find('.');
  const size_t suffix = rest.rfind('.');
  const auto in_block =
      std::ranges::find(kBlockNames, rest.substr(dot + 1, suffix - dot - 1), &Names::first);
  if (in_block == kBlockNames.end()) {
    throw Error(ExitCode::kInternal, "a tensor without a name in llama.cpp", std::string(name));
  }
  return fmt::format("blk.{}.{}{}", rest.substr(0, dot), in_block->second, rest.substr(suffix));
}

GgufType type_of(const ModelTensor& tensor, DType dtype) {
  return tensor.shape.size() > 1 && dtype == DType::kBF16 ? GgufType::kBF16 : GgufType::kF32;
}

/// llama.cpp rotates neighbouring rows of a Llama's heads; here and in Hugging Face row i of a
/// head's first half turns with row i of its second. Its Qwen2 rotates halves too.
bool has_rows_in_pairs(const ModelTensor& tensor, const LlamaOptions& model) {
  return !model.qkv_bias && (tensor.name.ends_with("self_attn.q_proj.weight") ||
                             tensor.name.ends_with("self_attn.k_proj.weight"));
}

/// What slow frequencies are divided by, for every pair of a head.
std::vector<float> rope_factors(const LlamaOptions& model) {
  const auto plain = rope_frequencies(model.head_dim, model.rope_theta, {});
  const auto scaled = rope_frequencies(model.head_dim, model.rope_theta, model.rope_scaling);
  std::vector<float> factors;
  for (size_t i = 0; i < plain.size(); ++i) {
    factors.push_back(static_cast<float>(plain[i] / scaled[i]));
  }
  return factors;
}

bool is_scaled(const LlamaOptions& model) {
  return model.rope_scaling.kind != RopeScaling::Kind::kNone;
}

void add_model(const ExportedModel& source, DType dtype, GgufHeader& header) {
  const LlamaOptions& model = source.options();
  const std::string architecture = model.qkv_bias ? "qwen2" : "llama";
  const auto key = [&](std::string_view name) { return fmt::format("{}.{}", architecture, name); };
  const int64_t positions = model.max_position_embeddings;
  header.add_text("general.architecture", architecture);
  header.add_text("general.type", "model");
  header.add_text("general.name", source.name());
  header.add_number("general.file_type", dtype == DType::kBF16 ? kMostlyBf16 : kAllF32);
  header.add_number(key("vocab_size"), model.vocab_size);
  header.add_number(key("context_length"), positions > 0 ? positions : source.sequence_length());
  header.add_number(key("embedding_length"), model.hidden_size);
  header.add_number(key("block_count"), model.layers);
  header.add_number(key("feed_forward_length"), model.feed_forward_size);
  header.add_number(key("attention.head_count"), model.heads);
  header.add_number(key("attention.head_count_kv"), model.kv_heads);
  header.add_number(key("attention.key_length"), model.head_dim);
  header.add_number(key("attention.value_length"), model.head_dim);
  header.add_real(key("attention.layer_norm_rms_epsilon"), model.norm_epsilon);
  header.add_number(key("rope.dimension_count"), model.head_dim);
  header.add_real(key("rope.freq_base"), model.rope_theta);
}

void add_tokenizer(const ExportedModel& source, const ExportRequest& request, GgufHeader& header,
                   std::vector<std::string>& warnings) {
  if (!request.tokenizer || !source.tokenizer()) {
    header.add_text("tokenizer.ggml.model", "no_vocab");
    return;
  }
  GgufVocabulary vocabulary = read_gguf_vocabulary(*source.tokenizer(), source.tokenizer_folder(),
                                                   source.options().vocab_size);
  warnings = vocabulary.warnings;
  add_vocabulary(std::move(vocabulary), source.tokenizer()->end_of_document,
                 source.options().vocab_size, header);
}

class TensorWriter {
 public:
  TensorWriter(ExportedModel& model, checkpoint::OutputFile& file) : model_(model), file_(file) {}

  void write(const ModelTensor& tensor) {
    if (has_rows_in_pairs(tensor, model_.options())) {
      write_heads(tensor);
    } else if (tensor.shape.size() == 1) {
      for_each_piece(
          tensor, [&](RowRange rows) { append(std::as_bytes(model_.read_floats(tensor, rows))); });
    } else {
      for_each_piece(tensor, [&](RowRange rows) { append(model_.read(tensor, rows)); });
    }
    pad();
  }
  void write(std::span<const float> values) {
    append(std::as_bytes(values));
    pad();
  }

 private:
  void append(std::span<const std::byte> bytes) {
    file_.write(bytes);
    written_ += bytes.size();
  }
  void pad() {
    const std::array<std::byte, 32> zeros = {};
    file_.write(std::span(zeros).first(GgufHeader::padding_after(written_)));
    written_ = 0;
  }
  /// Head by head, row i of the first half before row i of the second.
  void write_heads(const ModelTensor& tensor) {
    const int64_t size = model_.options().head_dim;
    std::vector<std::byte> pairs;
    for (int64_t row = 0; row < tensor.rows.count; row += size) {
      const auto head = model_.read(tensor, {tensor.rows.first + row, size});
      const size_t row_bytes = head.size() / static_cast<size_t>(size);
      const auto half = static_cast<size_t>(size / 2);
      pairs.clear();
      for (size_t i = 0; i < half; ++i) {
        for (const size_t from : {i, half + i}) {
          const auto bytes = head.subspan(from * row_bytes, row_bytes);
          pairs.insert(pairs.end(), bytes.begin(), bytes.end());
        }
      }
      append(pairs);
    }
  }

  ExportedModel& model_;
  checkpoint::OutputFile& file_;
  uint64_t written_ = 0;
};

}  // namespace

ExportResult export_gguf(const ExportRequest& request) {
  ExportedModel model(request);
  const LlamaOptions& options = model.options();
  if (options.qkv_bias && is_scaled(options)) {
    throw Error(ExitCode::kUsage, "llama.cpp's Qwen2 has no rope_scaling LLAMA3",
                "model.rope_scaling", "export it with --format hf");
  }
  ExportResult result;
  result.parameters = llama_parameter_count(options);
  result.files = 1;
  GgufHeader header;
  add_model(model, request.dtype, header);
  add_tokenizer(model, request, header, result.warnings);
  const std::vector<float> factors =
      is_scaled(options) ? rope_factors(options) : std::vector<float>();
  const std::array<int64_t, 1> factor_shape = {static_cast<int64_t>(factors.size())};
  if (!factors.empty()) header.add_tensor(kRopeFactors, factor_shape, GgufType::kF32);
  for (const ModelTensor& tensor : model.tensors()) {
    const GgufType type = type_of(tensor, request.dtype);
    header.add_tensor(gguf_name(tensor.name), tensor.shape, type);
    result.bytes += static_cast<uint64_t>(tensor.elements()) * (type == GgufType::kF32 ? 4 : 2);
    ++result.tensors;
  }

  OutputFolder output(*request.file_system, request.output);
  checkpoint::OutputFile file(*request.file_system, checkpoint::join(output.path(), kGgufFile));
  file.write(checkpoint::bytes_of(header.bytes()));
  TensorWriter writer(model, file);
  if (!factors.empty()) writer.write(factors);
  for (const ModelTensor& tensor : model.tensors()) writer.write(tensor);
  file.finish();
  model.require_whole();
  output.publish();
  return result;
}

}  // namespace flashshard::exchange
