// The folder of a run's checkpoints: names, what is complete, what is a leftover, which one an
// argument means.
//
//   step-00000200/                a checkpoint, complete when its manifest's own hash holds
//   step-00000200.tmp-<id>/       being written, or left by a save that did not end
//   step-00000200.deleting-<id>/  being deleted
//   step-00000200.bad[-<n>]/      was not whole when a save of the same step came; left for people
//   to look at latest                        names the newest, for people; never read by our code
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "runtime/checkpoint/file_system.h"

namespace flashshard::checkpoint {

std::string step_name(int64_t step);  // "step-00000200"
/// The step of an exact name; nothing for any other.
std::optional<int64_t> step_of_name(std::string_view name);

/// Name exact and the manifest's own hash holds. Throws when the disk or a permission prevents an
/// answer: taking such a checkpoint for an incomplete one would silently go back to an older.
bool is_complete(const std::string& step_folder, FileSystem& file_system = posix_file_system());

struct CompleteCheckpoint {
  int64_t step = 0;
  std::string path;
};
/// Oldest first; empty when the folder does not exist.
std::vector<CompleteCheckpoint> list_complete(const std::string& checkpoints_folder,
                                              FileSystem& file_system = posix_file_system());
/// The newest complete checkpoint in a checkpoints folder. Throws Error(kCheckpoint) when a folder
/// of a later step is not complete: no crash leaves one, so it is damage, or not ours to read, and
/// to go back behind it is for people to decide.
std::optional<std::string> find_latest_complete(const std::string& checkpoints_folder,
                                                FileSystem& file_system = posix_file_system());

/// The step folder that a CKPT argument means: itself, or the newest complete one of a checkpoints
/// folder or a run's folder. Throws Error(kUsage) for a path that does not exist,
/// Error(kCheckpoint) when it holds no complete checkpoint.
std::string resolve(const std::string& argument, FileSystem& file_system = posix_file_system());

/// Removes what saves and deletions left behind; returns the names. Makes the folder's own name and
/// that of the folder above it durable. For one rank alone, before a run begins.
std::vector<std::string> clean_up(const std::string& checkpoints_folder,
                                  FileSystem& file_system = posix_file_system());

/// 16 hexadecimal digits that tell one attempt from another.
std::string make_attempt_id();
/// The same on all ranks, made on rank 0.
std::string make_attempt_id(Communicator& communicator);

}  // namespace flashshard::checkpoint
