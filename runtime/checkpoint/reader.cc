#include "runtime/checkpoint/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace flashshard::checkpoint {
namespace {

RowRange overlap(RowRange a, RowRange b) {
  const int64_t first = std::max(a.first, b.first);
  const int64_t last = std::min(a.first + a.count, b.first + b.count);
  return {first, std::max<int64_t>(0, last - first)};
}

Manifest read_manifest(FileSystem& file_system, const std::string& folder) {
  const std::string path = join(folder, kManifestFile);
  return decode_manifest(read_file(file_system, path, kLargestManifest), path);
}

void check_wanted(const Schema& schema, const RowsWanted& wanted) {
  const ShardLayout& layout = schema.layout;
  const int64_t unit = layout.unit_rows(wanted.tensor);
  const int64_t rows = layout.parameter(wanted.tensor).rows;
  const int64_t last = wanted.rows.first + wanted.rows.count;
  const auto& state = schema.state(wanted.tensor, wanted.state);
  if (wanted.rows.first < 0 || last > rows || wanted.rows.first % unit != 0 ||
      (last % unit != 0 && last != rows) ||
      wanted.bytes.size() !=
          static_cast<size_t>(bytes_of_rows(layout, wanted.tensor, state, wanted.rows.count))) {
    throw Error(ExitCode::kInternal, "rows to read are no whole units, or their bytes do not fit",
                layout.parameter(wanted.tensor).name);
  }
}

/// Copies what `rank` has of the rows wanted, from its file.
void read_part(const ShardFileReader& file, const Schema& schema, int rank,
               const RowsWanted& wanted) {
  const ShardLayout& layout = schema.layout;
  const auto part = overlap(wanted.rows, layout.rows_of(wanted.tensor, rank));
  if (part.count == 0) return;
  const auto entry = std::ranges::find_if(file.entries(), [&](const ShardEntry& e) {
    return e.tensor == wanted.tensor && e.state == wanted.state;
  });
  const StateRecord& state = schema.state(wanted.tensor, wanted.state);
  const auto offset = bytes_of_rows(layout, wanted.tensor, state, part.first - wanted.rows.first);
  const auto size = bytes_of_rows(layout, wanted.tensor, state, part.count);
  file.read(static_cast<size_t>(entry - file.entries().begin()), part,
            wanted.bytes.subspan(static_cast<size_t>(offset), static_cast<size_t>(size)));
}

// Of RowReader: a whole run's files may be more than a process may have open.
constexpr size_t kMostOpenFiles = 64;

}  // namespace

CheckpointReader::CheckpointReader(std::string step_folder, FileSystem& file_system)
    : file_system_(file_system),
      folder_(std::move(step_folder)),
      manifest_(read_manifest(file_system, folder_)) {}

void CheckpointReader::read(std::span<const RowsWanted> wanted) const {
  std::vector<RowsWanted> weights;
  std::vector<RowsWanted> states;
  for (const RowsWanted& rows : wanted) {
    if (rows.rows.count == 0) continue;
    check_wanted(manifest_.schema, rows);
    (rows.state == 0 ? weights : states).push_back(rows);
  }
  for (int rank = 0; rank < manifest_.schema.layout.world_size(); ++rank) {
    read_from(FileKind::kWeights, rank, weights);
    read_from(FileKind::kState, rank, states);
  }
}

void CheckpointReader::read_from(FileKind kind, int rank,
                                 std::span<const RowsWanted> wanted) const {
  const ShardLayout& layout = manifest_.schema.layout;
  const auto owns_part = [&](const RowsWanted& rows) {
    return overlap(rows.rows, layout.rows_of(rows.tensor, rank)).count > 0;
  };
  if (std::ranges::none_of(wanted, owns_part)) return;

  const ShardFileReader file = open(kind, rank);
  for (const RowsWanted& rows : wanted) read_part(file, manifest_.schema, rank, rows);
}

ShardFileReader CheckpointReader::open(FileKind kind, int rank) const {
  return {file_system_, folder_, manifest_, kind, rank};
}

const ShardFileReader& RowReader::file(FileKind kind, int rank) {
  const auto open = std::ranges::find_if(
      files_, [&](const OpenFile& file) { return file.kind == kind && file.rank == rank; });
  if (open != files_.end()) {
    files_.splice(files_.begin(), files_, open);
  } else {
    if (files_.size() == kMostOpenFiles) files_.pop_back();
    files_.push_front({kind, rank, checkpoint_.open(kind, rank)});
  }
  return files_.front().reader;
}

void RowReader::read(const RowsWanted& wanted) {
  if (wanted.rows.count == 0) return;
  const Schema& schema = checkpoint_.manifest().schema;
  check_wanted(schema, wanted);
  const FileKind kind = wanted.state == 0 ? FileKind::kWeights : FileKind::kState;
  for (int rank = 0; rank < schema.layout.world_size(); ++rank) {
    if (overlap(wanted.rows, schema.layout.rows_of(wanted.tensor, rank)).count == 0) continue;
    read_part(file(kind, rank), schema, rank, wanted);
  }
}

}  // namespace flashshard::checkpoint
