#include "runtime/checkpoint/save.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "runtime/agreement.h"
#include "runtime/checkpoint/commit.h"
#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/shard_file.h"

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

/// One attempt to save, from the first folder to the commit.
class Saving {
 public:
  Saving(const SaveRequest& request, Communicator& communicator)
      : request_(request),
        communicator_(communicator),
        commit_{*request.file_system, request.folder, request.run.step,
                make_attempt_id(communicator)} {}

  SaveResult run() {
    SaveResult result;
    result.path = commit_.final_path();
    try {
      write_files();
      result.hash = all_reduce(hasher_.sum(), communicator_);
      sync_hosts();
      commit(result);
    } catch (const CommunicationError&) {
      throw;  // the others' state is unknown: the leftover stays for the next start to clean up
    } catch (const Error&) {
      if (communicator_.rank() == 0) commit_.discard();
      throw;
    }
    if (communicator_.rank() == 0) {
      commit_.update_latest_and_delete_old(request_.keep_last, result.warnings);
    }
    return result;
  }

 private:
  void agree_on(const std::function<void()>& work) {
    agree(communicator_, outcome_of(work),
          fmt::format("the checkpoint of step {} was not saved, earlier ones are as they were",
                      request_.run.step));
  }

  void write_files() {
    agree_on([&] {
      schema_.emplace(schema_of(*request_.layout, request_.views));
      if (communicator_.rank() == 0) commit_.begin();
    });
    agree_on([&] {
      const ShardBytes bytes = bytes_of_views(*schema_, request_.views);
      const int shard = request_.shard.value_or(communicator_.rank());
      for (const FileKind kind : {FileKind::kWeights, FileKind::kState}) {
        records_.push_back(
            write_shard_file({*request_.file_system, commit_.temporary_path(), *schema_,
                              plan_file(*schema_, kind, shard), shard, bytes},
                             hasher_));
      }
    });
  }

  void sync_hosts() {
    if (!several_hosts(communicator_)) return;
    agree_on([&] {
      if (!syncs_folder_for_its_host(communicator_)) return;
      sync_folder(*request_.file_system, commit_.temporary_path());
    });
  }

  void commit(SaveResult& result) {
    Manifest manifest{request_.run, *schema_, gather_records(records_, communicator_), result.hash};
    std::array<int64_t, 1> already_there = {0};
    agree_on([&] {
      if (communicator_.rank() == 0) already_there[0] = commit_.commit(manifest, result.warnings);
    });
    communicator_.all_reduce(already_there, ReduceOp::kMax).wait("waiting for the end of a save");
    result.already_there = already_there[0] != 0;
  }

  const SaveRequest& request_;
  Communicator& communicator_;
  std::optional<Schema> schema_;
  Commit commit_;
  LogicalHasher hasher_;
  std::vector<FileRecord> records_;
};

}  // namespace

SaveResult save(const SaveRequest& request, Communicator& communicator) {
  return Saving(request, communicator).run();
}

}  // namespace flashshard::checkpoint
