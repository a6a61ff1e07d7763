// Reading a checkpoint by tensor, state and rows, whoever wrote them: rows are copied, never
// decoded.
#pragma once

#include <cstddef>
#include <list>
#include <span>
#include <string>

#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/shard_file.h"

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

  /// One rank's file. Throws Error(kCheckpoint).
  ShardFileReader open(FileKind kind, int rank) const;

 private:
  void read_from(FileKind kind, int rank, std::span<const RowsWanted> wanted) const;

  FileSystem& file_system_;
  std::string folder_;
  Manifest manifest_;
};

/// Rows asked for piece by piece, in any order: the files that they come from stay open. Memory is
/// the caller's and the files' headers.
class RowReader {
 public:
  /// `checkpoint` must outlive it.
  explicit RowReader(const CheckpointReader& checkpoint) : checkpoint_(checkpoint) {}

  /// Like CheckpointReader::read. A piece has no hash of its own: the caller compares the logical
  /// hash of all that it read with the manifest's.
  void read(const RowsWanted& wanted);

 private:
  struct OpenFile {
    FileKind kind;
    int rank;
    ShardFileReader reader;
  };
  const ShardFileReader& file(FileKind kind, int rank);

  const CheckpointReader& checkpoint_;
  std::list<OpenFile> files_;  // the latest used first
};

}  // namespace flashshard::checkpoint
