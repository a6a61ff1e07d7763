// fsck for a checkpoint: reads every byte and says what is wrong, and hashes its logical content.
#pragma once

#include <string>
#include <vector>

#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/hash.h"

namespace flashshard::checkpoint {

struct Finding {
  std::string file;    // in the checkpoint's folder
  std::string tensor;  // empty when it is no single tensor
  std::string what;
};
std::string to_text(const Finding& finding);  // one line

struct Verification {
  std::string path;
  std::vector<Finding> findings;  // empty: the checkpoint is whole
  LogicalHash hash;               // of the bytes on disk
};
std::string to_json(const Verification& verification);

/// Checks the manifest's own hash, its JSON twin, every file's size, header, rows and hash, every
/// tensor's hash, that the units cover each tensor once, that scales are valid codes, that nothing
/// else lies in the folder, and that the logical hash is the manifest's. `argument` is a step
/// folder, a checkpoints folder or a run's folder. Damage becomes findings; throws only when there
/// is no such checkpoint.
Verification verify(const std::string& argument, FileSystem& file_system = posix_file_system());
/// The same for a step folder.
Verification verify_folder(const std::string& step_folder, FileSystem& file_system);

/// The logical hash of the bytes on disk; the same as live_hash of the run that saved them. Throws
/// Error(kCheckpoint) with the first finding for a damaged checkpoint.
LogicalHash hash(const std::string& argument, FileSystem& file_system = posix_file_system());
std::string to_json(const LogicalHash& hash);  // one member per class, and "total"

}  // namespace flashshard::checkpoint
