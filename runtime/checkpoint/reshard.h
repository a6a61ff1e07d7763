// A checkpoint for another number of ranks, offline. A run resumes at any number of ranks without
// it; it is for files of another size, or for fewer of them.
#pragma once

#include <string>
#include <vector>

#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/hash.h"

namespace flashshard::checkpoint {

struct ReshardRequest {
  std::string source;  // a step folder, a checkpoints folder or a run's folder
  int ranks = 1;       // that the new checkpoint looks saved by
  std::string folder;  // a checkpoints folder, made when missing: gets the step's folder
  int zstd_level = 0;  // of the new shard files; 0: plain safetensors
  FileSystem* file_system = &posix_file_system();
};

struct ReshardResult {
  std::string path;  // of the new step folder
  LogicalHash hash;  // of both checkpoints
  std::vector<std::string> warnings;
};

/// Copies the rows, no number of them decoded, in pieces of about a mebibyte, and commits like a
/// save: a crash at any instant leaves nothing that could be taken for a checkpoint. The source
/// stays as it is. Throws Error: kCheckpoint (a damaged source, by its logical hash), kUsage (the
/// folder has this step already, or may not be written), kOutOfSpace.
ReshardResult reshard(const ReshardRequest& request);

}  // namespace flashshard::checkpoint
