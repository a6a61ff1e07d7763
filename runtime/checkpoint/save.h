// Saving a checkpoint: every rank writes its rows, all vote, rank 0 commits (docs/checkpoints.md
// has the protocol). A crash at any instant leaves the previous checkpoint whole and the unfinished
// one recognisable by its name.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "optim/sharded_state.h"
#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/hash.h"
#include "runtime/checkpoint/manifest.h"

namespace flashshard::checkpoint {

struct SaveRequest {
  std::string folder;  // the run's checkpoints folder, shared by all hosts; made when missing
  RunState run;        // the same on every rank; rank 0's is saved
  const ShardLayout* layout = nullptr;
  std::optional<int> shard = {};  // of the layout, that the views are; absent: this rank's number
  /// What this rank owns: each tensor's weight rows first, then its states
  /// (ShardedState::shard_views). Host-readable.
  std::span<const ShardTensorView> views = {};
  int zstd_level = 0;      // of the shard files; 0: plain safetensors
  int keep_last = 0;       // complete checkpoints to keep, this one included; 0: all
  int64_t keep_every = 0;  // those of steps that are multiples of it stay as well; 0: no others
  FileSystem* file_system = &posix_file_system();
};

struct SaveResult {
  std::string path;            // of the step's folder
  LogicalHash hash;            // of the state that was to be saved
  bool already_there = false;  // a whole checkpoint of this step existed, and was kept
  /// Rank 0: what went wrong after the checkpoint was safe (`latest`, deletion of old ones).
  /// Nothing to stop for.
  std::vector<std::string> warnings;
};

/// All ranks call it between two steps. When it returns, the checkpoint survives a power loss; when
/// it throws, it throws the same on all ranks, naming the failing rank and the reason, and the last
/// checkpoint is as it was: kOutOfSpace for a full disk or failing storage, kUsage for missing
/// permission. CommunicationError comes from the communicator itself. Ranks wait for the slowest
/// writer: the communicator's deadline must allow for it.
SaveResult save(const SaveRequest& request, Communicator& communicator);

}  // namespace flashshard::checkpoint
