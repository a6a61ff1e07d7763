#include "runtime/checkpoint/shard_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "runtime/checkpoint/zstd_file.h"

namespace flashshard::checkpoint {
namespace {

void write_content(const ShardFileWrite& write, ByteSink& file, FileRecord& record,
                   LogicalHasher& hasher) {
  const ShardLayout& layout = write.schema.layout;
  const ShardFilePlan& plan = write.plan;
  Xxh3 file_hash;
  Xxh3 tensor_hash;
  file.write(bytes_of(plan.header_bytes));
  file_hash.add(bytes_of(plan.header_bytes));
  for (size_t i = 0; i < plan.entries.size(); ++i) {
    const ShardEntry& entry = plan.entries[i];
    const StateRecord& state = write.schema.state(entry.tensor, entry.state);
    const int64_t bytes_of_a_unit = unit_bytes(layout, entry.tensor, state);
    const int64_t unit_rows = layout.unit_rows(entry.tensor);
    const int64_t piece = rows_of_piece(write.schema, entry, write.piece_bytes);
    const int64_t last = entry.rows.first + entry.rows.count;
    tensor_hash.reset();
    for (int64_t row = entry.rows.first; row < last; row += piece) {
      const auto bytes = write.bytes(entry, {row, std::min(piece, last - row)});
      file_hash.add(bytes);
      tensor_hash.add(bytes);
      hasher.add({layout.parameter(entry.tensor).name, state.name, row / unit_rows, bytes_of_a_unit,
                  bytes});
      file.write(bytes);
    }
    const SafetensorsEntry& tensor = plan.header.entries[i];
    record.tensors.push_back({tensor.name, tensor.bytes(), tensor_hash.digest()});
  }
  file.finish();
  record.hash = file_hash.digest();
}

}  // namespace

size_t chunk_bytes(int64_t bytes_of_a_unit, size_t piece_bytes) {
  const auto unit = static_cast<size_t>(bytes_of_a_unit);
  return std::max<size_t>(1, piece_bytes / unit) * unit;
}

int64_t rows_of_piece(const Schema& schema, const ShardEntry& entry, size_t piece_bytes) {
  const ShardLayout& layout = schema.layout;
  const int64_t unit = unit_bytes(layout, entry.tensor, schema.state(entry.tensor, entry.state));
  const auto units = static_cast<int64_t>(chunk_bytes(unit, piece_bytes)) / unit;
  return units * layout.unit_rows(entry.tensor);
}

ShardBytes bytes_of_views(const Schema& schema, std::span<const ShardTensorView> views) {
  // By tensor, in the order of Schema::states.
  std::vector<std::vector<const ShardTensorView*>> index(schema.states.size());
  for (const ShardTensorView& view : views) {
    index[static_cast<size_t>(view.tensor)].push_back(&view);
  }
  return [&schema, index = std::move(index)](const ShardEntry& entry, RowRange rows) {
    const ShardTensorView& view = *index[static_cast<size_t>(entry.tensor)][entry.state];
    const StateRecord& state = schema.state(entry.tensor, entry.state);
    const auto size_of_rows = [&](int64_t count) {
      return static_cast<size_t>(bytes_of_rows(schema.layout, entry.tensor, state, count));
    };
    return std::span<const std::byte>(view.bytes)
        .subspan(size_of_rows(rows.first - view.rows.first), size_of_rows(rows.count));
  };
}

FileRecord write_shard_file(const ShardFileWrite& write, LogicalHasher& hasher) {
  const ShardFilePlan& plan = write.plan;
  FileRecord record;
  record.name = plan.name;
  record.rank = write.rank;
  record.bytes = plan.header.data_offset + plan.header.data_bytes;
  if (write.zstd_level == 0) {
    OutputFile file(write.file_system, join(write.folder, record.name));
    write_content(write, file, record, hasher);
  } else {
    record.name += kZstdSuffix;
    ZstdOutputFile file(write.file_system, join(write.folder, record.name), write.zstd_level);
    write_content(write, file, record, hasher);
    record.zstd = {file.bytes(), file.hash()};
  }
  return record;
}

uint64_t check_shard_header(const ByteSource& file, const ShardFilePlan& plan) {
  const SafetensorsHeader header = read_safetensors_header(file);
  const auto& wanted = plan.header.entries;
  for (size_t i = 0; i < std::max(wanted.size(), header.entries.size()); ++i) {
    if (i >= wanted.size() || i >= header.entries.size() || header.entries[i] != wanted[i]) {
      const auto name = i < wanted.size() ? wanted[i].name : header.entries[i].name;
      throw Error(ExitCode::kCheckpoint,
                  fmt::format("tensor {}: name, dtype, shape or place in the file are not what the "
                              "manifest says",
                              in_quotes(name)),
                  file.path());
    }
  }
  const auto shards = header.metadata.find("shards");
  if (shards == header.metadata.end() || shards->second != plan.header.metadata.at("shards")) {
    throw Error(ExitCode::kCheckpoint, "__metadata__: the rows are not those of this rank",
                file.path());
  }
  return header.data_offset;
}

void check_record(const FileRecord& record, const ShardFilePlan& plan, const std::string& where) {
  const bool same = std::ranges::equal(record.tensors, plan.header.entries,
                                       [](const TensorHash& a, const SafetensorsEntry& b) {
                                         return a.name == b.name && a.bytes == b.bytes();
                                       });
  if (same && record.bytes >= plan.header.data_bytes) return;
  throw Error(ExitCode::kCheckpoint,
              "bad manifest: the tensors or bytes listed for this file are not those of its rank",
              where);
}

std::unique_ptr<ByteSource> open_shard_file(FileSystem& file_system, const std::string& folder,
                                            const FileRecord& record) {
  const std::string path = join(folder, record.name);
  InputFile file(file_system, path);
  if (file.size() != record.bytes_on_disk()) {
    throw Error(ExitCode::kCheckpoint,
                fmt::format("the file has {} bytes, the manifest says {}", file.size(),
                            record.bytes_on_disk()),
                path);
  }
  if (record.zstd) return std::make_unique<ZstdInputFile>(std::move(file), record.bytes);
  return std::make_unique<InputFile>(std::move(file));
}

ShardFileReader::ShardFileReader(FileSystem& file_system, const std::string& folder,
                                 const Manifest& manifest, FileKind kind, int rank)
    : manifest_(manifest),
      plan_(plan_file(manifest.schema, kind, rank)),
      record_(manifest.file(kind, rank)),
      file_(open_shard_file(file_system, folder, record_)),
      data_offset_(check_shard_header(*file_, plan_)) {
  check_record(record_, plan_, file_->path());
}

void ShardFileReader::read(size_t index, RowRange rows, std::span<std::byte> bytes) const {
  const ShardEntry& entry = plan_.entries[index];
  const ShardLayout& layout = manifest_.schema.layout;
  const StateRecord& state = manifest_.schema.state(entry.tensor, entry.state);
  const SafetensorsEntry& tensor = plan_.header.entries[index];
  const int64_t skipped = bytes_of_rows(layout, entry.tensor, state, rows.first - entry.rows.first);
  uint64_t offset = data_offset_ + tensor.begin + static_cast<uint64_t>(skipped);
  const bool whole = rows.count == entry.rows.count;
  Xxh3 hash;
  for (auto rest = bytes; !rest.empty();) {
    const auto piece = rest.first(std::min(kPieceBytes, rest.size()));
    file_->read(offset, piece);
    if (whole) hash.add(piece);
    offset += piece.size();
    rest = rest.subspan(piece.size());
  }
  if (whole && hash.digest() != record_.tensors[index].hash) {
    throw Error(
        ExitCode::kCheckpoint,
        fmt::format("tensor {}: its bytes are not those that were saved", in_quotes(tensor.name)),
        file_->path(), "`flashshard verify` lists the damage; resume from another checkpoint");
  }
}

}  // namespace flashshard::checkpoint
