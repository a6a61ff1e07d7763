// What a checkpoint holds, from its manifest alone.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/manifest.h"

namespace flashshard::checkpoint {

/// Bytes a parameter that training with Adam in fp32 saves: weight, momentum and variance.
constexpr double kFp32BytesPerParameter = 12;

struct Inspection {
  std::string path;
  RunState run;
  int world_size = 0;
  int64_t tensors = 0;
  int64_t parameters = 0;                                  // elements of all weights
  std::array<int64_t, kStateClasses> bytes_by_class = {};  // of tensor data
  int64_t tensor_bytes = 0;
  int64_t file_bytes = 0;  // tensors, headers and manifests
  bool under_zstd = false;
  LogicalHash hash;  // as the manifest says; `verify` compares it with the bytes

  double bytes_per_parameter() const {
    return static_cast<double>(tensor_bytes) / static_cast<double>(parameters);
  }
  double compression() const { return kFp32BytesPerParameter / bytes_per_parameter(); }
};

/// `argument` is a step folder, a checkpoints folder or a run's folder. Throws Error(kCheckpoint).
Inspection inspect(const std::string& argument, FileSystem& file_system = posix_file_system());

std::string to_text(const Inspection& inspection);  // a table for people
std::string to_json(const Inspection& inspection);

}  // namespace flashshard::checkpoint
