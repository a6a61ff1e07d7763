// status/rank-NNNNN.json: how a rank stands and how it ended, what a launcher reads before mpirun's
// own exit code.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/error.h"

namespace flashshard::metrics {

enum class RunState { kStarting, kRunning, kSaving, kDone, kFailed, kStopped };
/// "starting", "running", "saving", "done", "failed", "stopped".
std::string_view name_of(RunState state);

struct RankStatus {
  RunState state = RunState::kStarting;
  std::optional<ExitCode> exit_code;  // set once the rank is about to end; null in the file before
  std::string reason;                 // one line for people; empty while all is well
  int64_t last_step = 0;              // last finished optimizer step
};

/// The text of the file; time (UTC, ISO 8601), process id and host are filled in.
std::string to_json(const RankStatus& status);

class StatusFile {
 public:
  explicit StatusFile(std::filesystem::path path) : path_(std::move(path)) {}

  /// Replaces the file atomically. On a full disk the old file's own blocks are overwritten, so the
  /// reason of a failed run gets out. Throws Error(kOutOfSpace or kUsage).
  void set(const RankStatus& status);

  /// The same on the way out after an error, where a second one would hide the first: false when it
  /// failed.
  bool try_set(const RankStatus& status) noexcept;

 private:
  std::filesystem::path path_;
};

}  // namespace flashshard::metrics
