// The main job: from a resolved configuration to a trained, saved model, on every rank of a
// communicator.
#pragma once

#include <string>

#include "comm/communicator.h"
#include "kernels/error.h"
#include "proto/run.pb.h"
#include "runtime/checkpoint/file_system.h"

namespace flashshard {

struct TrainRequest {
  proto::RunConfig config;      // resolved, the same on every rank
  std::string resume = "auto";  // "auto": the run folder's newest complete checkpoint, or a fresh
                                // start; "never"; or a checkpoint's path
  checkpoint::FileSystem* storage = &checkpoint::posix_file_system();  // of checkpoints
};

/// Collective. kDone, or kStopped after a requested stop with its checkpoint saved. Every rank's
/// status file tells how it ended, errors included. Throws AgreedError when all ranks know of the
/// failure, any other Error when this rank alone does: then the caller must abort the communicator.
ExitCode train(Communicator& communicator, const TrainRequest& request);

}  // namespace flashshard
