#include "runtime/exchange/hugging_face_export.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/exchange/hugging_face_config.h"
#include "runtime/exchange/hugging_face_files.h"
#include "runtime/exchange/tokenizer_files.h"

namespace flashshard::exchange {
namespace {

/// The tensors of one weight file: consecutive ones of the model.
using WeightFile = std::span<const ModelTensor>;

uint64_t bytes_of(const ModelTensor& tensor, DType dtype) {
  return static_cast<uint64_t>(tensor.elements()) * size_of(dtype);
}

std::vector<WeightFile> split(std::span<const ModelTensor> tensors, DType dtype, uint64_t limit) {
  std::vector<WeightFile> files;
  size_t first = 0;
  uint64_t bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t more = bytes_of(tensors[i], dtype);
    if (i > first && bytes + more > limit) {
      files.push_back(tensors.subspan(first, i - first));
      first = i;
      bytes = 0;
    }
    bytes += more;
  }
  files.push_back(tensors.subspan(first));
  return files;
}

std::string weight_file_name(size_t number, size_t files) {
  if (files == 1) return kWeightFile;
  return fmt::format("model-{:05}-of-{:05}.safetensors", number + 1, files);
}

void write_weights(ExportedModel& model, WeightFile tensors, DType dtype, const std::string& name,
                   const OutputFolder& output) {
  checkpoint::SafetensorsHeader header;
  header.metadata = {{"format", "pt"}};
  for (const ModelTensor& tensor : tensors) {
    header.entries.push_back(
        {tensor.name, std::string(checkpoint::safetensors_dtype(dtype)), tensor.shape});
  }
  checkpoint::OutputFile file(output.file_system(), checkpoint::join(output.path(), name));
  file.write(checkpoint::bytes_of(checkpoint::lay_out_safetensors(header)));
  for (const ModelTensor& tensor : tensors) {
    for_each_piece(tensor, [&](RowRange rows) { file.write(model.read(tensor, rows)); });
  }
  file.finish();
}

std::string index_of(std::span<const WeightFile> files, uint64_t bytes) {
  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = bytes;
  for (size_t f = 0; f < files.size(); ++f) {
    for (const ModelTensor& tensor : files[f]) {
      index["weight_map"][tensor.name] = weight_file_name(f, files.size());
    }
  }
  return index.dump(2) + "\n";
}

}  // namespace

ExportResult export_hugging_face(const ExportRequest& request) {
  ExportedModel model(request);
  const auto files = split(model.tensors(), request.dtype, request.shard_bytes);
  ExportResult result;
  result.tensors = static_cast<int64_t>(model.tensors().size());
  result.parameters = llama_parameter_count(model.options());
  result.files = static_cast<int>(files.size());
  for (const ModelTensor& tensor : model.tensors()) result.bytes += bytes_of(tensor, request.dtype);

  OutputFolder output(*request.file_system, request.output);
  int32_t beginning = data::kNoToken;
  if (request.tokenizer && model.tokenizer()) {
    result.warnings = write_tokenizer_files(*model.tokenizer(), model.tokenizer_folder(), output);
    if (model.tokenizer()->kind == "hf") {
      beginning = beginning_of_text(model.tokenizer_folder() / data::kHuggingFaceFile);
    }
  }
  for (size_t f = 0; f < files.size(); ++f) {
    write_weights(model, files[f], request.dtype, weight_file_name(f, files.size()), output);
  }
  model.require_whole();
  if (files.size() > 1) output.write_file(kWeightIndexFile, index_of(files, result.bytes));
  const HuggingFaceConfigFiles texts = write_hugging_face_config(
      {.model = model.options(),
       .weights = request.dtype,
       .sequence_length = model.sequence_length(),
       .beginning_of_text = beginning,
       .end_of_document = model.tokenizer() ? model.tokenizer()->end_of_document : data::kNoToken});
  output.write_file(kConfigFile, texts.config);
  output.write_file(kGenerationConfigFile, texts.generation_config);
  output.publish();
  return result;
}

}  // namespace flashshard::exchange
