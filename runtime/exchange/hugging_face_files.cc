#include "runtime/exchange/hugging_face_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/fp16.h"

namespace flashshard::exchange {
namespace {

using checkpoint::in_quotes;
using checkpoint::join;
using checkpoint::kind_of;
using checkpoint::PathKind;
using nlohmann::json;

/// weight_map of an index: the file of each tensor. The names cannot lead out of the folder.
std::map<std::string, std::string> read_index(checkpoint::FileSystem& file_system,
                                              const std::string& path) {
  const json index = json::parse(checkpoint::read_file(file_system, path, kLargestJson), nullptr,
                                 /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw Error(ExitCode::kCheckpoint, "it has no object weight_map", path);
  }
  std::map<std::string, std::string> map;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (!name.ends_with(".safetensors") || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos) {
      throw Error(ExitCode::kCheckpoint,
                  fmt::format("weight_map of {} is no name of a safetensors file in this folder",
                              in_quotes(tensor)),
                  path);
    }
    map.emplace(tensor, name);
  }
  return map;
}

template <class Stored, class Convert>
void convert(std::span<const std::byte> bytes, std::span<float> values, Convert to_float) {
  for (size_t i = 0; i < values.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, bytes.data() + i * sizeof(Stored), sizeof(Stored));
    values[i] = to_float(stored);
  }
}

}  // namespace

HuggingFaceFiles::HuggingFaceFiles(checkpoint::FileSystem& file_system, const std::string& folder) {
  const std::string index_path = join(folder, kWeightIndexFile);
  if (kind_of(file_system, index_path) != PathKind::kMissing) {
    const auto index = read_index(file_system, index_path);
    std::set<std::string> names;
    for (const auto& [tensor, file] : index) names.insert(file);
    for (const std::string& name : names) open(file_system, join(folder, name));
    check_index(index, index_path);
    return;
  }
  const std::string path = join(folder, kWeightFile);
  if (kind_of(file_system, path) == PathKind::kMissing) {
    throw Error(ExitCode::kCheckpoint,
                fmt::format("no {} and no {}", kWeightFile, kWeightIndexFile), folder,
                "pickled weights are not read: save the model as safetensors");
  }
  open(file_system, path);
}

void HuggingFaceFiles::open(checkpoint::FileSystem& file_system, const std::string& path) {
  checkpoint::InputFile file(file_system, path);
  checkpoint::SafetensorsHeader header = checkpoint::read_safetensors_header(file);
  files_.push_back({std::move(file), header.data_offset});
  for (checkpoint::SafetensorsEntry& entry : header.entries) {
    const std::string name = entry.name;
    if (!tensors_.try_emplace(name, Source{files_.size() - 1, std::move(entry)}).second) {
      throw Error(ExitCode::kCheckpoint,
                  fmt::format("tensor {} stands in another file too", in_quotes(name)), path);
    }
  }
}

void HuggingFaceFiles::check_index(const std::map<std::string, std::string>& index,
                                   const std::string& path) const {
  for (const auto& [tensor, file] : index) {
    const auto found = tensors_.find(tensor);
    if (found != tensors_.end() && checkpoint::name_of_path(path_of(found->second)) == file) {
      continue;
    }
    throw Error(ExitCode::kCheckpoint,
                fmt::format("tensor {} is not in {}", in_quotes(tensor), in_quotes(file)), path);
  }
  for (const auto& [tensor, source] : tensors_) {
    if (index.contains(tensor)) continue;
    throw Error(ExitCode::kCheckpoint,
                fmt::format("tensor {} is not in the index", in_quotes(tensor)), path_of(source));
  }
}

void HuggingFaceFiles::read(const Source& source, int64_t first, std::span<float> values) {
  const std::string& dtype = source.entry.dtype;
  if (dtype != "BF16" && dtype != "F16" && dtype != "F32") {
    throw Error(ExitCode::kCheckpoint,
                fmt::format("tensor {}: dtype {} is not read, only BF16, F16 and F32 are",
                            in_quotes(source.entry.name), dtype),
                path_of(source));
  }
  const size_t width = dtype == "F32" ? sizeof(float) : sizeof(uint16_t);
  const File& file = files_[source.file];
  buffer_.resize(values.size() * width);
  file.file.read(file.data_offset + source.entry.begin + static_cast<uint64_t>(first) * width,
                 buffer_);
  if (dtype == "F32") {
    std::memcpy(values.data(), buffer_.data(), buffer_.size());
  } else if (dtype == "BF16") {
    convert<uint16_t>(buffer_, values, bf16_to_float);
  } else {
    convert<uint16_t>(buffer_, values, fp16_to_float);
  }
}

}  // namespace flashshard::exchange
