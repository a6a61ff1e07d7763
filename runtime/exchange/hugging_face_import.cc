#include "runtime/exchange/hugging_face_import.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <set>

#include "kernels/backend.h"
#include "optim/update_rule.h"
#include "proto/run.pb.h"
#include "runtime/checkpoint/commit.h"
#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/shard_file.h"
#include "runtime/config/run_config.h"
#include "runtime/exchange/hugging_face_config.h"
#include "runtime/exchange/hugging_face_files.h"
#include "runtime/exchange/model_tensors.h"
#include "runtime/exchange/output_folder.h"
#include "runtime/exchange/tokenizer_files.h"

namespace flashshard::exchange {
namespace {

using checkpoint::in_quotes;
using checkpoint::join;

// Of the texts that `eval` and `generate` take at once; a run that starts with the weights sets its
// own.
constexpr int64_t kSequenceLength = 2048;

[[noreturn]] void fail(const std::string& where, const std::string& tensor, std::string_view what) {
  throw Error(ExitCode::kCheckpoint, fmt::format("tensor {}: {}", in_quotes(tensor), what), where);
}

WeightFormat weight_format(const ImportRequest& request, int bits) {
  if (request.dtype == DType::kFP32) return WeightFormat::kFP32;
  if (bits == 32) return WeightFormat::kSplit32;
  return bits == 24 ? WeightFormat::kSplit24 : WeightFormat::kBF16;
}

/// The configuration that a run of this model would have; where a run needs settings that a model
/// does not have, they are what `eval` and `generate` want.
std::string config_text(const LlamaOptions& model, const ImportRequest& request) {
  proto::RunConfig config;
  config.mutable_run()->set_dir(request.output);
  // Nothing was trained here; where a moved checkpoint finds its tokenizer (tokenizer_folder).
  config.mutable_data()->set_path(join(request.output, "tokenizer"));
  auto& m = *config.mutable_model();
  const bool fp32 = request.dtype == DType::kFP32;
  m.set_dtype(fp32 ? proto::WeightType::FP32 : proto::WeightType::BF16);
  m.set_vocab_size(model.vocab_size);
  m.set_hidden_size(model.hidden_size);
  m.set_layers(model.layers);
  m.set_heads(model.heads);
  m.set_kv_heads(model.kv_heads);
  m.set_head_dim(model.head_dim);
  m.set_feed_forward_size(model.feed_forward_size);
  m.set_rope_theta(model.rope_theta);
  if (model.rope_scaling.kind == RopeScaling::Kind::kLlama3) {
    m.set_rope_scaling(proto::RopeScalingKind::LLAMA3);
    m.set_rope_scaling_factor(model.rope_scaling.factor);
    m.set_rope_low_frequency_factor(model.rope_scaling.low_frequency_factor);
    m.set_rope_high_frequency_factor(model.rope_scaling.high_frequency_factor);
    m.set_rope_original_positions(model.rope_scaling.original_positions);
  }
  m.set_max_position_embeddings(model.max_position_embeddings);
  m.set_norm_epsilon(model.norm_epsilon);
  m.set_qkv_bias(model.qkv_bias);
  m.set_tied_embeddings(model.tied_embeddings);
  m.set_init_std(model.init_std);
  const int64_t positions = model.max_position_embeddings;
  auto& train = *config.mutable_train();
  train.set_steps(1);
  train.set_sequence_length(positions > 0 ? std::min(positions, kSequenceLength) : kSequenceLength);
  train.set_micro_batch(1);
  train.set_global_batch(1);
  auto& optimizer = *config.mutable_optimizer();
  optimizer.set_master_weight_bits(fp32 ? 32 : request.master_weight_bits);
  if (fp32) optimizer.set_state(proto::OptimizerState::FP32);
  try {
    return to_text(parse_run_config(to_text(config), kConfigFile, {}));
  } catch (const Error& error) {
    // Whoever wrote it, a size out of range stands in the model's folder.
    throw Error(ExitCode::kCheckpoint, error.what(), join(request.folder, kConfigFile));
  }
}

/// Weight and correction of every parameter, as a run of these formats would save them.
checkpoint::Schema make_schema(const UpdateRule& rule, std::vector<ParameterSpec> parameters,
                               DType dtype) {
  std::vector<int64_t> unit_rows;
  std::vector<std::vector<checkpoint::StateRecord>> states;
  for (const ParameterSpec& parameter : parameters) {
    unit_rows.push_back(unit_rows_of(rule, parameter));
    auto& of_tensor = states.emplace_back();
    of_tensor.push_back({std::string(checkpoint::kWeightState), dtype, 1});
    for (const StateTensorSpec& state : rule.states(parameter)) {
      if (checkpoint::class_of_state(state.name) != checkpoint::StateClass::kCorrection) continue;
      of_tensor.push_back({state.name, state.dtype, state.group});
    }
  }
  return {ShardLayout(std::move(parameters), std::move(unit_rows), 1), std::move(states)};
}

/// The folder's tensors, matched with the model's.
class MatchedTensors {
 public:
  MatchedTensors(HuggingFaceFiles& files, const LlamaOptions& model,
                 std::span<const ParameterSpec> parameters)
      : files_(files), by_parameter_(parameters.size()) {
    std::set<std::string> known;
    for (ModelTensor& tensor : tensors_of(parameters)) {
      check_shape(source(tensor.name), tensor);
      known.insert(tensor.name);
      by_parameter_[static_cast<size_t>(tensor.tensor)].push_back(std::move(tensor));
    }
    for (const auto& [name, source] : files.tensors()) {
      // Older Llama folders hold the rotary frequencies, which follow from config.json.
      if (known.contains(name) || name.ends_with("rotary_emb.inv_freq")) continue;
      if (model.tied_embeddings && name == kHead) {
        require_tied(source);
        continue;
      }
      fail(files.path_of(source), name, "the model has no such tensor");
    }
  }

  /// Rows of a parameter, from the tensors that are its parts.
  void read(int parameter, RowRange rows, std::span<float> values) {
    for (const ModelTensor& part : by_parameter_[static_cast<size_t>(parameter)]) {
      const int64_t first = std::max(rows.first, part.rows.first);
      const int64_t last = std::min(rows.first + rows.count, part.rows.first + part.rows.count);
      if (first >= last) continue;
      const auto target = values.subspan(static_cast<size_t>((first - rows.first) * part.cols()),
                                         static_cast<size_t>((last - first) * part.cols()));
      files_.read(source(part.name), (first - part.rows.first) * part.cols(), target);
    }
  }
  /// The file and tensor that row `row` of a parameter comes from, for messages.
  [[noreturn]] void refuse_value(int parameter, int64_t row) const {
    for (const ModelTensor& part : by_parameter_[static_cast<size_t>(parameter)]) {
      if (row >= part.rows.first + part.rows.count) continue;
      fail(files_.path_of(source(part.name)), part.name,
           fmt::format("row {} has a value that is not finite or beyond the range of a weight",
                       row - part.rows.first));
    }
    throw Error(ExitCode::kInternal, "a row beyond its parameter");
  }

 private:
  static constexpr const char* kHead = "lm_head.weight";
  static constexpr const char* kEmbedding = "model.embed_tokens.weight";

  const HuggingFaceFiles::Source& source(const std::string& name) const {
    const auto found = files_.tensors().find(name);
    if (found != files_.tensors().end()) return found->second;
    throw Error(ExitCode::kCheckpoint, fmt::format("tensor {} is missing", in_quotes(name)),
                files_.tensors().empty() ? "" : files_.path_of(files_.tensors().begin()->second));
  }
  void check_shape(const HuggingFaceFiles::Source& source, const ModelTensor& tensor) const {
    if (source.entry.shape != tensor.shape) {
      fail(files_.path_of(source), tensor.name,
           fmt::format("its shape is [{}], config.json asks for [{}]",
                       fmt::join(source.entry.shape, ", "), fmt::join(tensor.shape, ", ")));
    }
    if (const std::string& d = source.entry.dtype; d != "BF16" && d != "F16" && d != "F32") {
      fail(files_.path_of(source), tensor.name,
           fmt::format("dtype {} is not read, only BF16, F16 and F32 are", d));
    }
  }
  /// An output layer that config.json calls tied must be the embedding.
  void require_tied(const HuggingFaceFiles::Source& head) {
    const ModelTensor& embedding = by_parameter_[kLlamaEmbedding].front();
    ModelTensor same = embedding;
    same.name = kHead;
    check_shape(head, same);
    std::vector<float> a, b;
    for_each_piece(embedding, [&](RowRange rows) {
      a.resize(static_cast<size_t>(rows.count * embedding.cols()));
      b.resize(a.size());
      files_.read(source(kEmbedding), rows.first * embedding.cols(), a);
      files_.read(head, rows.first * embedding.cols(), b);
      if (a != b) {
        fail(files_.path_of(head), kHead,
             "config.json says tie_word_embeddings, but it is not the embedding");
      }
    });
  }

  HuggingFaceFiles& files_;
  std::vector<std::vector<ModelTensor>> by_parameter_;
};

/// Encodes rows as they are written.
class ImportedRows {
 public:
  ImportedRows(MatchedTensors& tensors, const checkpoint::Schema& schema, const UpdateRule& rule,
               Backend& backend)
      : tensors_(tensors), schema_(schema), rule_(rule), backend_(backend) {}

  std::span<const std::byte> bytes(const checkpoint::ShardEntry& entry, RowRange rows) {
    const ParameterSpec& parameter = schema_.layout.parameter(entry.tensor);
    const auto& states = schema_.states[static_cast<size_t>(entry.tensor)];
    values_.resize(static_cast<size_t>(rows.count * parameter.cols));
    tensors_.read(entry.tensor, rows, values_);
    const auto size_of_state = [&](size_t state) {
      return static_cast<size_t>(
          checkpoint::bytes_of_rows(schema_.layout, entry.tensor, states[state], rows.count));
    };
    weight_.resize(size_of_state(0));
    correction_.resize(states.size() > 1 ? size_of_state(1) : 0);
    int64_t rejected = 0;
    backend_.encode_master({.format = rule_.weight_format(parameter),
                            .values = values_.data(),
                            .weight = weight_.data(),
                            .correction = correction_.empty() ? nullptr : correction_.data(),
                            .count = static_cast<int64_t>(values_.size()),
                            .rejected_groups = &rejected});
    backend_.synchronize();
    if (rejected > 0) refuse(entry, rows, parameter.cols);
    return entry.state == 0 ? weight_ : correction_;
  }

 private:
  /// Names the first value that no weight can hold.
  [[noreturn]] void refuse(const checkpoint::ShardEntry& entry, RowRange rows, int64_t cols) const {
    const auto bad = std::ranges::find_if(values_, [](float value) {
      return !(std::abs(value) < 3.3e38f);  // NaN too
    });
    tensors_.refuse_value(entry.tensor, rows.first + (bad - values_.begin()) / cols);
  }

  MatchedTensors& tensors_;
  const checkpoint::Schema& schema_;
  const UpdateRule& rule_;
  Backend& backend_;
  std::vector<float> values_;
  std::vector<std::byte> weight_, correction_;
};

/// Writes checkpoints/step-00000000 of the output.
checkpoint::LogicalHash write_checkpoint(const std::string& folder, checkpoint::Manifest& manifest,
                                         ImportedRows& rows, checkpoint::FileSystem& file_system) {
  checkpoint::Commit commit(file_system, folder, /*step=*/0, checkpoint::make_attempt_id());
  commit.begin();
  checkpoint::LogicalHasher hasher;
  const checkpoint::ShardBytes bytes = [&](const checkpoint::ShardEntry& entry, RowRange range) {
    return rows.bytes(entry, range);
  };
  for (const auto kind : {checkpoint::FileKind::kWeights, checkpoint::FileKind::kState}) {
    const checkpoint::ShardFilePlan plan = plan_file(manifest.schema, kind, /*rank=*/0);
    manifest.files.push_back(write_shard_file(
        {file_system, commit.temporary_path(), manifest.schema, plan, 0, bytes}, hasher));
  }
  manifest.logical_hash = hasher.sum();
  std::vector<std::string> warnings;
  commit.commit(manifest, warnings);
  commit.update_latest_and_delete_old({}, warnings);
  return manifest.logical_hash;
}

/// A tokenizer that cannot be looked at here leaves the model usable: `generate` asks for one.
std::optional<data::TokenizerIdentity> tokenizer_of(const ImportRequest& request,
                                                    ImportResult& result) {
  try {
    auto identity = identify_tokenizer(request.folder);
    if (!identity) result.warnings.emplace_back("the folder has no tokenizer");
    return identity;
  } catch (const Error& error) {
    // The program that would read it is missing, or its files are damaged.
    if (error.code() != ExitCode::kUsage && error.code() != ExitCode::kBadData) throw;
    result.warnings.push_back(fmt::format("its tokenizer is left aside: {}", error.what()));
    return std::nullopt;
  }
}

}  // namespace

ImportResult import_hugging_face(const ImportRequest& request) {
  checkpoint::FileSystem& file_system = *request.file_system;
  const std::string config_path = join(request.folder, kConfigFile);
  if (checkpoint::kind_of(file_system, config_path) == checkpoint::PathKind::kMissing) {
    throw Error(ExitCode::kUsage, "no config.json here", request.folder,
                "give the folder of a Hugging Face model");
  }
  ImportResult result;
  HuggingFaceConfig config = read_hugging_face_config(
      checkpoint::read_file(file_system, config_path, kLargestJson), config_path);
  config.model.dtype = request.dtype;
  for (const std::string& field : config.unknown_fields) {
    result.warnings.push_back(
        fmt::format("{}: {} is not known and was left aside", config_path, in_quotes(field)));
  }
  checkpoint::RunState run;
  run.config = config_text(config.model, request);
  run.model = checkpoint::name_of_path(request.folder);
  const auto tokenizer = tokenizer_of(request, result);
  if (tokenizer) {
    run.environment["tokenizer"] = tokenizer->text();
    result.tokenizer = tokenizer->kind;
  }

  HuggingFaceFiles files(file_system, request.folder);
  const std::vector<ParameterSpec> parameters = llama_parameters(config.model);
  MatchedTensors tensors(files, config.model, parameters);
  const auto backend = make_cpu_backend({.threads = 1});
  ElementwiseOptions formats;
  formats.weight_format = weight_format(request, request.master_weight_bits);
  formats.vector_weight_format = weight_format(request, 32);
  const auto rule = make_elementwise_rule(*backend, formats);
  checkpoint::Manifest manifest{run, make_schema(*rule, parameters, request.dtype), {}, {}};
  ImportedRows rows(tensors, manifest.schema, *rule, *backend);

  OutputFolder output(file_system, request.output);
  result.hash = write_checkpoint(join(output.path(), "checkpoints"), manifest, rows, file_system);
  if (tokenizer && tokenizer->has_model_file()) {
    data::save_tokenizer_files(request.folder, join(output.path(), "tokenizer"));
  }
  output.publish();
  result.path = join(join(request.output, "checkpoints"), checkpoint::step_name(0));
  result.model = config.model;
  result.parameters = llama_parameter_count(config.model);
  return result;
}

}  // namespace flashshard::exchange
