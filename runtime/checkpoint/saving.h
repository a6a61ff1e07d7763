// One attempt to save, cut where ranks meet: parts that each rank works on alone, and what they
// settle after each (docs/checkpoints.md, "Commit"). Whoever saves while training goes on lets
// another thread do the work; the protocol is the same.
//
//   begin    rank 0 makes the folder of the attempt
//   write    every rank its two files
//   sync     where there are several hosts: one rank of each but rank 0's makes the folder durable
//   commit   rank 0 checks the files, publishes the folder, deletes old checkpoints
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/agreement.h"
#include "runtime/checkpoint/commit.h"
#include "runtime/checkpoint/save.h"
#include "runtime/checkpoint/shard_file.h"

namespace flashshard::checkpoint {

class Saving {
 public:
  /// Collective: the ranks agree on a name for the attempt. What `request` points to, and the
  /// communicator, must outlive it.
  Saving(const SaveRequest& request, Communicator& communicator);

  /// This rank's work of the part. Calls no communicator and changes nothing that settle() does not
  /// wait for: any thread may run it. A failure is kept for settle().
  void work();
  /// True when this rank's last work() failed.
  bool failed() const { return outcome_.has_value(); }
  /// Another rank has failed: a write() that is under way ends soon, and settle() tells why. Any
  /// thread.
  void give_up() { given_up_ = true; }

  /// Collective, after work() has ended on every rank: votes and goes on to the next part; false
  /// when there is none, the checkpoint is safe. Throws as save() does, the attempt's folder
  /// removed.
  bool settle();
  /// Once settle() returned false.
  const SaveResult& result() const { return result_; }

  /// After the first part: what will be written.
  const Schema& schema() const { return *schema_; }
  /// Before the second: where the rows' bytes come from, and in what pieces; unless told, from the
  /// request's views.
  void write_from(ShardBytes bytes, size_t piece_bytes);

 private:
  enum class Part : uint8_t { kBegin, kWrite, kSync, kCommit };

  void begin();
  void write();
  void sync();
  void commit();
  /// What follows when every rank's work has succeeded.
  bool next_part();

  SaveRequest request_;
  Communicator& communicator_;
  Part part_ = Part::kBegin;
  std::optional<Failure> outcome_;
  std::atomic<bool> given_up_ = false;
  std::optional<Schema> schema_;
  Commit commit_;
  ShardBytes bytes_;
  size_t piece_bytes_ = kPieceBytes;
  LogicalHasher hasher_;
  std::vector<FileRecord> records_;
  std::optional<Manifest> manifest_;
  bool already_there_ = false;
  SaveResult result_;
};

}  // namespace flashshard::checkpoint
