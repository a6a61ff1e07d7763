#include "runtime/exchange/exported_model.h"

#include <algorithm>

#include "kernels/numerics/bf16.h"
#include "runtime/checkpoint/folder.h"
#include "runtime/config/run_config.h"
#include "runtime/engine.h"
#include "runtime/run_checkpoint.h"

namespace flashshard::exchange {
namespace {

proto::RunConfig config_of(const checkpoint::CheckpointReader& checkpoint) {
  return parse_run_config(checkpoint.manifest().run.config,
                          checkpoint.folder() + ": its configuration", {});
}

}  // namespace

ExportedModel::ExportedModel(const ExportRequest& request)
    : dtype_(request.dtype),
      checkpoint_(checkpoint::resolve(request.checkpoint, *request.file_system),
                  *request.file_system),
      tokenizer_(tokenizer_of(checkpoint_.manifest().run)),
      backend_(make_cpu_backend({.threads = 1})),
      masters_(checkpoint_, *backend_) {
  const proto::RunConfig config = config_of(checkpoint_);
  options_ = llama_options(config, 0);
  sequence_length_ = config.train().sequence_length();
  data_path_ = config.data().path();
  const std::vector<ParameterSpec> parameters = llama_parameters(options_);
  checkpoint::require_same_shapes(checkpoint_.manifest().schema, parameters, checkpoint_.folder());
  tensors_ = tensors_of(parameters);
}

std::filesystem::path ExportedModel::tokenizer_folder() const {
  return flashshard::tokenizer_folder(checkpoint_.folder(), data_path_);
}

std::span<const std::byte> ExportedModel::read(const ModelTensor& tensor, RowRange rows) {
  if (dtype_ == DType::kFP32) return std::as_bytes(read_floats(tensor, rows));
  halves_.resize(static_cast<size_t>(rows.count * tensor.cols()));
  masters_.read_bf16(tensor.tensor, rows, halves_);
  return std::as_bytes(std::span<const uint16_t>(halves_));
}

std::span<const float> ExportedModel::read_floats(const ModelTensor& tensor, RowRange rows) {
  floats_.resize(static_cast<size_t>(rows.count * tensor.cols()));
  if (dtype_ == DType::kFP32) {
    masters_.read(tensor.tensor, rows, checkpoint::WeightValue::kMaster, floats_);
  } else {
    halves_.resize(floats_.size());
    masters_.read_bf16(tensor.tensor, rows, halves_);
    std::ranges::transform(halves_, floats_.begin(), bf16_to_float);
  }
  return floats_;
}

void ExportedModel::require_whole() const {
  checkpoint::require_weights_of(checkpoint_, masters_.hash(), value());
}

}  // namespace flashshard::exchange
