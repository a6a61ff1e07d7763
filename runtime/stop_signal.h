// Asking a run to stop: SIGUSR1, SIGUSR2, SIGTERM or the file run.dir/stop. A request is only noted
// here; the trainer polls it once a step, agrees on it with the other ranks, saves and ends with
// exit code 8.
#pragma once

#include <csignal>
#include <cstdint>
#include <filesystem>
#include <string_view>

namespace flashshard {

/// Larger values win, so ranks agree by a max-reduction of the underlying integers.
enum class StopCause : int32_t {
  kNone = 0,
  kStopFile = 1,
  kUserSignal1 = 2,
  kUserSignal2 = 3,
  kTerminate = 4,
};
/// "the stop file", "SIGUSR1", ...; "nothing" for kNone.
std::string_view name_of(StopCause cause);

struct StopRequest {
  StopCause cause = StopCause::kNone;
  explicit operator bool() const { return cause != StopCause::kNone; }
};

/// Catches the three signals while it lives and puts the earlier handlers back afterwards. Ranks
/// that are threads of one process may each hold one: they see the same requests.
class StopSignal {
 public:
  /// `stop_file`: also looked for at every poll; empty on ranks that leave this to rank 0.
  explicit StopSignal(std::filesystem::path stop_file = {});
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  /// What was asked for so far. Never blocks; costs one stat(2) where a stop file is set.
  StopRequest poll() const;

  /// The request was honoured (the checkpoint is saved): removes the stop file, or the next run
  /// would stop at once.
  void honoured() const;

 private:
  std::filesystem::path stop_file_;
};

}  // namespace flashshard
