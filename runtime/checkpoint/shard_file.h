// One rank's safetensors file: written piece by piece from whatever holds the rows, read back by
// rows.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "optim/sharded_state.h"
#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/hash.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/schema.h"

namespace flashshard::checkpoint {

/// Gives the bytes of some rows of an entry, whole units, in the order of the file. They are used
/// before the next call.
using ShardBytes =
    std::function<std::span<const std::byte>(const ShardEntry& entry, RowRange rows)>;
/// Those of a rank's memory. Schema and views must outlive the result.
ShardBytes bytes_of_views(const Schema& schema, std::span<const ShardTensorView> views);

/// About the bytes that are worked on at once: what is hashed and written is still in the cache.
constexpr size_t kPieceBytes = size_t{1} << 20;
/// Bytes of a piece in whole units; at least one.
size_t chunk_bytes(int64_t bytes_of_a_unit, size_t piece_bytes = kPieceBytes);

struct ShardFileWrite {
  FileSystem& file_system;
  const std::string& folder;
  const Schema& schema;
  const ShardFilePlan& plan;
  int rank = 0;
  const ShardBytes& bytes;
  int zstd_level = 0;                // 0: a plain safetensors file
  size_t piece_bytes = kPieceBytes;  // what `bytes` is asked for at once, about
};
/// Writes the file, makes its bytes durable and adds its units to the logical hash.
FileRecord write_shard_file(const ShardFileWrite& write, LogicalHasher& hasher);

/// Rows of an entry that are written at once: whole units of about `piece_bytes`.
int64_t rows_of_piece(const Schema& schema, const ShardEntry& entry, size_t piece_bytes);

/// The file's header holds exactly what the schema says; throws Error(kCheckpoint) naming tensor
/// and field. Returns where the data begins.
uint64_t check_shard_header(const ByteSource& file, const ShardFilePlan& plan);

/// Opens a rank's file for reading its safetensors content, which is not looked at. Throws
/// Error(kCheckpoint) naming the file when it has another size than the manifest says.
std::unique_ptr<ByteSource> open_shard_file(FileSystem& file_system, const std::string& folder,
                                            const FileRecord& record);

/// The manifest's record of a file lists the tensors of its schema; throws Error(kCheckpoint).
void check_record(const FileRecord& record, const ShardFilePlan& plan, const std::string& where);

class ShardFileReader {
 public:
  /// Opens the file and checks size and header against the manifest. Throws Error(kCheckpoint)
  /// naming the file.
  ShardFileReader(FileSystem& file_system, const std::string& folder, const Manifest& manifest,
                  FileKind kind, int rank);

  std::span<const ShardEntry> entries() const { return plan_.entries; }
  /// Copies rows of entry `index` into `bytes`: whole units within the entry's rows. Where that is
  /// the whole entry, its hash is checked; a part is covered by the logical hash of what is loaded.
  void read(size_t index, RowRange rows, std::span<std::byte> bytes) const;

 private:
  const Manifest& manifest_;
  ShardFilePlan plan_;
  const FileRecord& record_;
  std::unique_ptr<ByteSource> file_;
  uint64_t data_offset_;
};

}  // namespace flashshard::checkpoint
