// The weight files of a Hugging Face model folder: model.safetensors, or several with an index.
// They come from anywhere: headers are checked by the strict reader, the index against the files.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/checkpoint/safetensors.h"

namespace flashshard::exchange {

inline constexpr const char* kConfigFile = "config.json";
inline constexpr const char* kGenerationConfigFile = "generation_config.json";
inline constexpr const char* kWeightFile = "model.safetensors";
inline constexpr const char* kWeightIndexFile = "model.safetensors.index.json";
/// Largest JSON file that is read, in bytes.
constexpr uint64_t kLargestJson = 100'000'000;

class HuggingFaceFiles {
 public:
  /// Opens every file and reads its header; no weight yet. Throws Error(kCheckpoint) naming file
  /// and tensor: no such files, an index that does not fit them, a name in two files.
  HuggingFaceFiles(checkpoint::FileSystem& file_system, const std::string& folder);

  struct Source {
    size_t file = 0;
    checkpoint::SafetensorsEntry entry;
  };
  const std::map<std::string, Source>& tensors() const { return tensors_; }
  const std::string& path_of(const Source& source) const { return files_[source.file].file.path(); }

  /// fp32 values of elements [first, first + values.size()) of a tensor of BF16, F16 or F32. Throws
  /// Error(kCheckpoint) for another dtype.
  void read(const Source& source, int64_t first, std::span<float> values);

 private:
  struct File {
    checkpoint::InputFile file;
    uint64_t data_offset;
  };
  void open(checkpoint::FileSystem& file_system, const std::string& path);
  void check_index(const std::map<std::string, std::string>& index, const std::string& path) const;

  std::vector<File> files_;
  std::map<std::string, Source> tensors_;
  std::vector<std::byte> buffer_;
};

}  // namespace flashshard::exchange
