// Loading a checkpoint: into the ranks of a run that goes on, or the weights alone for `eval` and
// `generate`.
#pragma once

#include <span>
#include <string>

#include "comm/communicator.h"
#include "kernels/tensor.h"
#include "optim/sharded_state.h"
#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/manifest.h"

namespace flashshard::checkpoint {

struct LoadRequest {
  std::string step_folder;
  /// Of the run. Any world size: each rank copies the rows that it owns from the files that hold
  /// them, straight into its memory.
  const ShardLayout* layout = nullptr;
  /// What this rank owns (ShardedState::shard_views): overwritten. Host-writable.
  std::span<const ShardTensorView> views = {};
  /// Whole weights by tensor, (rows, cols) in the checkpoint's dtype; every rank gets all rows.
  /// Empty: the views suffice.
  std::span<const Tensor> weights = {};
  FileSystem* file_system = &posix_file_system();
};

/// Fills views and weights and returns where the run stood. All ranks call it; all succeed or all
/// throw the same Error: kCheckpoint when the checkpoint is damaged or does not fit, naming the
/// file or the tensor and the field. The hash of every tensor that a rank reads whole is checked as
/// it is read, and the logical hash of all ranks' views against the manifest's at the end. After an
/// error the memory holds parts of the checkpoint: the run cannot go on from it.
RunState load(const LoadRequest& request, Communicator& communicator);

/// Where a run stood, without its tensors.
RunState read_run_state(const std::string& step_folder,
                        FileSystem& file_system = posix_file_system());

/// Fills whole weights, one Tensor of shape (rows, cols) per parameter, in the checkpoint's dtype,
/// from a checkpoint of any world size. Throws Error(kCheckpoint).
void read_weights(const std::string& step_folder, std::span<const ParameterSpec> parameters,
                  std::span<const Tensor> weights, FileSystem& file_system = posix_file_system());

}  // namespace flashshard::checkpoint
