#include "runtime/checkpoint/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "runtime/checkpoint/shard_file.h"

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

  const ShardFileReader file(file_system_, folder_, manifest_, kind, rank);
  for (const RowsWanted& rows : wanted) {
    const auto part = overlap(rows.rows, layout.rows_of(rows.tensor, rank));
    if (part.count == 0) continue;
    const auto entry = std::ranges::find_if(file.entries(), [&](const ShardEntry& e) {
      return e.tensor == rows.tensor && e.state == rows.state;
    });
    const StateRecord& state = manifest_.schema.state(rows.tensor, rows.state);
    const auto offset = bytes_of_rows(layout, rows.tensor, state, part.first - rows.rows.first);
    const auto size = bytes_of_rows(layout, rows.tensor, state, part.count);
    file.read(static_cast<size_t>(entry - file.entries().begin()), part,
              rows.bytes.subspan(static_cast<size_t>(offset), static_cast<size_t>(size)));
  }
}

}  // namespace flashshard::checkpoint
