#include "runtime/checkpoint/commit.h"

#include <fmt/format.h>

#include <utility>

#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/shard_file.h"
#include "runtime/checkpoint/verify.h"

namespace flashshard::checkpoint {
namespace {

/// A name for a folder that is not whole; earlier ones of the same step stay.
std::string bad_path(FileSystem& file_system, const std::string& path) {
  std::string bad = path + ".bad";
  for (int n = 2; kind_of(file_system, bad) != PathKind::kMissing; ++n) {
    bad = fmt::format("{}.bad-{}", path, n);
  }
  return bad;
}

}  // namespace

Commit::Commit(FileSystem& file_system, std::string folder, int64_t step, std::string attempt_id)
    : file_system_(file_system),
      folder_(std::move(folder)),
      attempt_id_(std::move(attempt_id)),
      name_(step_name(step)),
      final_(join(folder_, name_)),
      temporary_(fmt::format("{}.tmp-{}", final_, attempt_id_)) {}

void Commit::begin() {
  make_folders(file_system_, folder_);
  if (const int status = file_system_.make_directory(temporary_); status < 0) {
    throw write_error("cannot make the folder of a checkpoint", temporary_, -status);
  }
}

bool Commit::commit(const Manifest& manifest, std::vector<std::string>& warnings) {
  check_files(manifest);
  const ManifestFiles files = encode_manifest(manifest);
  write_file(file_system_, join(temporary_, kManifestFile), files.pb);
  write_file(file_system_, join(temporary_, kManifestJsonFile), files.json);
  sync_folder(file_system_, temporary_);
  return publish(manifest, warnings);
}

/// Rank 0 sees every rank's files as that rank left them: size, header and rows.
void Commit::check_files(const Manifest& manifest) const {
  for (int rank = 0; rank < manifest.schema.layout.world_size(); ++rank) {
    for (const FileKind kind : {FileKind::kWeights, FileKind::kState}) {
      ShardFileReader(file_system_, temporary_, manifest, kind, rank);
    }
  }
}

bool Commit::publish(const Manifest& manifest, std::vector<std::string>& warnings) {
  bool already_there = false;
  if (kind_of(file_system_, final_) != PathKind::kMissing) {
    const Verification existing = verify_folder(final_, file_system_);
    already_there = existing.findings.empty();
    if (!already_there) {
      rename(file_system_, final_, bad_path(file_system_, final_));
      warnings.push_back(fmt::format("{} was not whole and was moved aside: {}", final_,
                                     to_text(existing.findings.front())));
    } else if (existing.hash != manifest.logical_hash) {
      warnings.push_back(fmt::format(
          "{} was there already, whole, with other contents ({} instead of {}), and was kept",
          final_, existing.hash.total().hex(), manifest.logical_hash.total().hex()));
    }
  }
  if (!already_there) rename(file_system_, temporary_, final_);
  sync_folder(file_system_, folder_);
  if (already_there) discard();
  return already_there;
}

void Commit::update_latest_and_delete_old(const Retention& retention,
                                          std::vector<std::string>& warnings) {
  // Deletion comes after `latest`: it must not name a checkpoint that is gone.
  try {
    write_latest();
    if (retention.keep_last > 0) delete_old(retention);
  } catch (const Error& error) {
    warnings.push_back(fmt::format("{} is safe, but: {}", final_, error.what()));
  }
}

void Commit::write_latest() {
  const std::string latest = join(folder_, "latest");
  const std::string temporary = fmt::format("{}.tmp-{}", latest, attempt_id_);
  try {
    write_file(file_system_, temporary, name_ + "\n");
    rename(file_system_, temporary, latest);
  } catch (const Error&) {
    file_system_.remove_file(temporary);
    throw;
  }
}

void Commit::delete_old(const Retention& retention) {
  const auto complete = list_complete(folder_, file_system_);
  // This one is never deleted, though checkpoints of later steps may stand beside it after a resume
  // from an older one.
  auto surplus = static_cast<int64_t>(complete.size()) - retention.keep_last;
  std::vector<std::string> doomed;
  for (const CompleteCheckpoint& checkpoint : complete) {
    if (surplus <= 0) break;
    if (checkpoint.path == final_) continue;
    --surplus;
    if (retention.keep_every > 0 && checkpoint.step % retention.keep_every == 0) continue;
    doomed.push_back(checkpoint.path);
  }
  if (doomed.empty()) return;
  // A `latest` that comes back must not name what is gone; where nothing is deleted an older one
  // does no harm.
  sync_folder(file_system_, folder_);
  for (std::string& path : doomed) {
    const std::string deleting = fmt::format("{}.deleting-{}", path, attempt_id_);
    rename(file_system_, path, deleting);
    path = deleting;
  }
  // A complete name must never come back with half of its files gone.
  sync_folder(file_system_, folder_);
  for (const std::string& path : doomed) remove_tree(file_system_, path);
}

void Commit::discard() noexcept {
  try {
    if (kind_of(file_system_, temporary_) == PathKind::kDirectory) {
      remove_tree(file_system_, temporary_);
    }
  } catch (const std::exception&) {
    // The name says what it is; the next start removes it.
  }
}

}  // namespace flashshard::checkpoint
