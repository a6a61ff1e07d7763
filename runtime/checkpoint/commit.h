// Rank 0's side of a save: the folder of the attempt, the manifests, the rename that makes it a
// checkpoint, and what is done once it is safe (docs/checkpoints.md, "Commit").
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/manifest.h"

namespace flashshard::checkpoint {

/// Which complete checkpoints stay: the `keep_last` newest (0: all), and those whose step is a
/// multiple of `keep_every` (0: no others).
struct Retention {
  int keep_last = 0;
  int64_t keep_every = 0;
};

class Commit {
 public:
  Commit(FileSystem& file_system, std::string folder, int64_t step, std::string attempt_id);

  const std::string& temporary_path() const { return temporary_; }
  const std::string& final_path() const { return final_; }

  /// Makes the attempt's folder.
  void begin();
  /// Reopens every file, writes the manifests and publishes the folder. Returns true when a whole
  /// checkpoint of this step was there already and was kept. After it returned the checkpoint
  /// survives a power loss.
  bool commit(const Manifest& manifest, std::vector<std::string>& warnings);
  /// Names the checkpoint in `latest`, then deletes complete ones that need not stay. Troubles
  /// become warnings: the checkpoint is safe.
  void update_latest_and_delete_old(const Retention& retention, std::vector<std::string>& warnings);
  /// Removes the attempt's folder after a failure, as far as that goes.
  void discard() noexcept;

 private:
  void check_files(const Manifest& manifest) const;
  bool publish(const Manifest& manifest, std::vector<std::string>& warnings);
  void write_latest();
  void delete_old(const Retention& retention);

  FileSystem& file_system_;
  std::string folder_;
  std::string attempt_id_;
  std::string name_;
  std::string final_;
  std::string temporary_;
};

}  // namespace flashshard::checkpoint
