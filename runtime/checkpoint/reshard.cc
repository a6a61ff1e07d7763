#include "runtime/checkpoint/reshard.h"

#include <fmt/format.h>

#include <utility>

#include "runtime/checkpoint/commit.h"
#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/reader.h"
#include "runtime/checkpoint/shard_file.h"

namespace flashshard::checkpoint {
namespace {

Schema schema_for(const Schema& schema, int ranks) {
  std::vector<int64_t> unit_rows;
  for (int t = 0; t < schema.layout.tensors(); ++t) {
    unit_rows.push_back(schema.layout.unit_rows(t));
  }
  return {ShardLayout(schema.layout.parameters(), std::move(unit_rows), ranks), schema.states};
}

/// Rows of a checkpoint of any world size, through one buffer.
ShardBytes bytes_of_checkpoint(const Schema& schema, RowReader& reader) {
  return [&schema, &reader, buffer = std::vector<std::byte>()](const ShardEntry& entry,
                                                               RowRange rows) mutable {
    buffer.resize(static_cast<size_t>(bytes_of_rows(
        schema.layout, entry.tensor, schema.state(entry.tensor, entry.state), rows.count)));
    reader.read({entry.tensor, entry.state, rows, buffer});
    return std::span<const std::byte>(buffer);
  };
}

Manifest write_files(const CheckpointReader& source, const ReshardRequest& request,
                     const std::string& folder) {
  Manifest manifest{
      source.manifest().run, schema_for(source.manifest().schema, request.ranks), {}, {}};
  RowReader rows(source);
  const ShardBytes bytes = bytes_of_checkpoint(manifest.schema, rows);
  LogicalHasher hasher;
  for (int rank = 0; rank < request.ranks; ++rank) {
    for (const FileKind kind : {FileKind::kWeights, FileKind::kState}) {
      const ShardFilePlan plan = plan_file(manifest.schema, kind, rank);
      manifest.files.push_back(write_shard_file(
          {*request.file_system, folder, manifest.schema, plan, rank, bytes, request.zstd_level},
          hasher));
    }
  }
  manifest.logical_hash = hasher.sum();
  if (manifest.logical_hash == source.manifest().logical_hash) return manifest;
  throw Error(ExitCode::kCheckpoint,
              fmt::format("what was read has the logical hash {}, the manifest says {}",
                          manifest.logical_hash.total().hex(),
                          source.manifest().logical_hash.total().hex()),
              source.folder(), "`flashshard verify` lists the damage");
}

}  // namespace

ReshardResult reshard(const ReshardRequest& request) {
  FileSystem& file_system = *request.file_system;
  const CheckpointReader source(resolve(request.source, file_system), file_system);
  Commit commit(file_system, request.folder, source.manifest().run.step, make_attempt_id());
  ReshardResult result;
  result.path = commit.final_path();
  if (kind_of(file_system, result.path) != PathKind::kMissing) {
    throw Error(ExitCode::kUsage, "there is a checkpoint of this step already", result.path,
                "choose another --output");
  }
  try {
    commit.begin();
    const Manifest manifest = write_files(source, request, commit.temporary_path());
    commit.commit(manifest, result.warnings);
    result.hash = manifest.logical_hash;
  } catch (...) {
    commit.discard();
    throw;
  }
  commit.update_latest_and_delete_old({}, result.warnings);
  return result;
}

}  // namespace flashshard::checkpoint
