// A run's folder (run.dir): who holds it and where its files stand. docs/metrics.md describes what
// each one holds.
#pragma once

#include <array>
#include <chrono>
#include <filesystem>
#include <string>
#include <string_view>

namespace flashshard {

/// Names one run on one folder: rank 0 draws it, the others compare it with what they find on their
/// own machine, so a folder that is not the same one on every machine is noticed before the first
/// step.
using RunTicket = std::array<char, 32>;

/// One folder, one run. Rank 0 holds an exclusive flock(2) on `.lock`, with its process id and host
/// inside; the kernel releases it when the process ends in whatever way, so no lock is ever stale.
class RunFolder {
 public:
  /// Rank 0: creates the folder where it is missing (its parent must exist), takes the lock and
  /// makes the sub-folders. Throws Error(kUsage): the path is empty, a file, has no parent folder,
  /// may not be written, lies on a file system without locks, or another trainer holds it (the
  /// message names its process and host).
  static RunFolder create(const std::filesystem::path& directory);

  /// The other ranks, after `ticket` came from rank 0: the same folder without the lock. Looks
  /// again for `patience`, since network file systems show new files late; then throws
  /// Error(kUsage): not shared by all ranks.
  static RunFolder join(const std::filesystem::path& directory, const RunTicket& ticket,
                        std::chrono::milliseconds patience = std::chrono::seconds(10));

  ~RunFolder();
  RunFolder(RunFolder&& other) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const RunTicket& ticket() const { return ticket_; }

  const std::filesystem::path& directory() const { return directory_; }
  std::filesystem::path config_path() const { return directory_ / "config.textproto"; }
  std::filesystem::path metrics_path() const { return directory_ / "metrics.jsonl"; }
  std::filesystem::path memory_path() const { return directory_ / "memory.json"; }
  std::filesystem::path tensorboard_directory() const { return directory_ / "tensorboard"; }
  std::filesystem::path checkpoints_directory() const { return directory_ / "checkpoints"; }
  /// Files of the tokenizer, where it has any.
  std::filesystem::path tokenizer_directory() const { return directory_ / "tokenizer"; }
  std::filesystem::path stop_path() const { return directory_ / "stop"; }
  /// logs/rank-00000.log
  std::filesystem::path log_path(int rank) const;
  /// status/rank-00000.json
  std::filesystem::path status_path(int rank) const;
  /// profile/rank-00000.json
  std::filesystem::path trace_path(int rank) const;

  /// Replaces config.textproto by the fully resolved config. Throws Error(kOutOfSpace or kUsage).
  void write_config(std::string_view textproto) const;

 private:
  RunFolder(std::filesystem::path directory, const RunTicket& ticket, int lock)
      : directory_(std::move(directory)), ticket_(ticket), lock_(lock) {}

  std::filesystem::path directory_;
  RunTicket ticket_ = {};
  int lock_ = -1;  // descriptor of .lock on rank 0, -1 on the others
};

}  // namespace flashshard
