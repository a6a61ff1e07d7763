// Reading a checkpoint by tensor, state and rows, whoever wrote them: rows are copied, never
// decoded.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/manifest.h"

namespace flashshard::checkpoint {

/// Rows of one state of one tensor, and where they go. `rows` are whole units (the tensor's last
/// one may be short).
struct RowsWanted {
  int tensor = 0;
  size_t state = 0;  // in Schema::states; 0 is the weight
  RowRange rows;
  std::span<std::byte> bytes;
};

class CheckpointReader {
 public:
  /// Reads and checks the manifest. Throws Error(kCheckpoint).
  explicit CheckpointReader(std::string step_folder, FileSystem& file_system = posix_file_system());

  const std::string& folder() const { return folder_; }
  const Manifest& manifest() const { return manifest_; }

  /// Fills every range from the files of the ranks that own a part of it, file by file. Sizes,
  /// headers and the hashes of tensors read whole are checked: Error(kCheckpoint) names file and
  /// tensor.
  void read(std::span<const RowsWanted> wanted) const;

 private:
  void read_from(FileKind kind, int rank, std::span<const RowsWanted> wanted) const;

  FileSystem& file_system_;
  std::string folder_;
  Manifest manifest_;
};

}  // namespace flashshard::checkpoint
