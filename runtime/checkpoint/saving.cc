#include "runtime/checkpoint/saving.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <span>
#include <utility>

#include "runtime/checkpoint/folder.h"

namespace flashshard::checkpoint {
namespace {

/// Rank 0 learns what every rank wrote. Only rank 0 needs it, so nobody else receives anything.
std::vector<FileRecord> gather_records(std::span<const FileRecord> mine,
                                       Communicator& communicator) {
  const auto ranks = static_cast<size_t>(communicator.world_size());
  const std::string sent = encode_files(mine);
  std::vector<int64_t> sizes(ranks);
  sizes[static_cast<size_t>(communicator.rank())] = static_cast<int64_t>(sent.size());
  communicator.all_reduce(sizes, ReduceOp::kSum)
      .wait("waiting for the sizes of the ranks' file lists");

  std::vector<ByteRange> send_ranges(ranks);
  std::vector<ByteRange> receive_ranges(ranks);
  send_ranges[0] = {0, sent.size()};
  size_t total = 0;
  if (communicator.rank() == 0) {
    for (size_t r = 0; r < ranks; ++r) {
      receive_ranges[r] = {total, static_cast<size_t>(sizes[r])};
      total += receive_ranges[r].size;
    }
  }
  std::string received(total, '\0');
  communicator
      .all_to_all(bytes_of(sent), send_ranges, std::as_writable_bytes(std::span(received)),
                  receive_ranges)
      .wait("waiting for the ranks' file lists");

  std::vector<FileRecord> records;
  for (const ByteRange& range : receive_ranges) {
    if (range.size == 0) continue;
    auto of_rank = decode_files(std::string_view(received).substr(range.offset, range.size));
    std::ranges::move(of_rank, std::back_inserter(records));
  }
  std::ranges::stable_sort(records, {}, &FileRecord::rank);  // ranks may own other shards
  return records;
}

/// True on one rank of every host other than rank 0's: it makes that host's folder entries durable.
/// Rank 0 does so for its own host, after the manifests.
bool syncs_folder_for_its_host(const Communicator& communicator) {
  const auto host = communicator.host(communicator.rank());
  for (int r = 0; r < communicator.rank(); ++r) {
    if (communicator.host(r) == host) return false;
  }
  return communicator.rank() != 0;
}

bool several_hosts(const Communicator& communicator) {
  for (int r = 1; r < communicator.world_size(); ++r) {
    if (communicator.host(r) != communicator.host(0)) return true;
  }
  return false;
}

}  // namespace

Saving::Saving(const SaveRequest& request, Communicator& communicator)
    : request_(request),
      communicator_(communicator),
      commit_{*request.file_system, request.folder, request.run.step,
              make_attempt_id(communicator)} {
  result_.path = commit_.final_path();
}

void Saving::write_from(ShardBytes bytes, size_t piece_bytes) {
  bytes_ = std::move(bytes);
  piece_bytes_ = piece_bytes;
}

void Saving::work() {
  outcome_ = outcome_of([this] {
    switch (part_) {
      case Part::kBegin:
        return begin();
      case Part::kWrite:
        return write();
      case Part::kSync:
        return sync();
      case Part::kCommit:
        return commit();
    }
  });
  // What was written a moment ago cannot be read back: no checkpoint is bad, the storage is.
  if (outcome_ && outcome_->code == ExitCode::kCheckpoint) outcome_->code = ExitCode::kOutOfSpace;
}

void Saving::begin() {
  schema_.emplace(schema_of(*request_.layout, request_.views));
  if (communicator_.rank() == 0) commit_.begin();
}

void Saving::write() {
  if (!bytes_) bytes_ = bytes_of_views(*schema_, request_.views);
  const ShardBytes bytes = [this](const ShardEntry& entry, RowRange rows) {
    if (given_up_) throw Error(ExitCode::kInternal, "the save was given up", result_.path);
    return bytes_(entry, rows);
  };
  const int shard = request_.shard.value_or(communicator_.rank());
  for (const FileKind kind : {FileKind::kWeights, FileKind::kState}) {
    records_.push_back(write_shard_file(
        {*request_.file_system, commit_.temporary_path(), *schema_,
         plan_file(*schema_, kind, shard), shard, bytes, request_.zstd_level, piece_bytes_},
        hasher_));
  }
}

void Saving::sync() {
  if (!syncs_folder_for_its_host(communicator_)) return;
  sync_folder(*request_.file_system, commit_.temporary_path());
}

void Saving::commit() {
  if (communicator_.rank() != 0) return;
  already_there_ = commit_.commit(*manifest_, result_.warnings);
  commit_.update_latest_and_delete_old({request_.keep_last, request_.keep_every}, result_.warnings);
}

bool Saving::settle() {
  try {
    // Who gave up has no failure of its own to tell: another rank has.
    agree(communicator_, given_up_ ? std::nullopt : outcome_,
          fmt::format("the checkpoint of step {} was not saved, earlier ones are as they were",
                      request_.run.step));
    if (given_up_) throw Error(ExitCode::kInternal, "a save that no rank failed was given up");
    return next_part();
  } catch (const CommunicationError&) {
    throw;  // the others' state is unknown: the leftover stays for the next start to clean up
  } catch (const Error&) {
    if (communicator_.rank() == 0) commit_.discard();
    throw;
  }
}

bool Saving::next_part() {
  switch (part_) {
    case Part::kBegin:
      part_ = Part::kWrite;
      return true;
    case Part::kWrite:
      result_.hash = all_reduce(hasher_.sum(), communicator_);
      manifest_.emplace(
          Manifest{request_.run, *schema_, gather_records(records_, communicator_), result_.hash});
      part_ = several_hosts(communicator_) ? Part::kSync : Part::kCommit;
      return true;
    case Part::kSync:
      part_ = Part::kCommit;
      return true;
    case Part::kCommit:
      break;
  }
  std::array<int64_t, 1> already_there = {already_there_};
  communicator_.all_reduce(already_there, ReduceOp::kMax).wait("waiting for the end of a save");
  result_.already_there = already_there[0] != 0;
  return false;
}

}  // namespace flashshard::checkpoint
