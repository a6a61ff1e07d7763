// Saving and resuming a run: what stands in the checkpoint beside the tensors, and what may change
// between the two.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "comm/communicator.h"
#include "proto/run.pb.h"
#include "runtime/engine.h"
#include "runtime/run_folder.h"
#include "runtime/run_reporter.h"

namespace flashshard {

/// Where a run stands besides its tensors.
struct RunProgress {
  int64_t step = 0;
  int64_t sequences = 0;  // consumed
  int64_t tokens = 0;     // trained on
  int64_t skipped_steps = 0;
  std::string data_fingerprint;
};

class RunCheckpoint {
 public:
  RunCheckpoint(Communicator& communicator, const RunFolder& folder, const proto::RunConfig& config,
                Engine& engine, RunReporter& reporter)
      : communicator_(communicator),
        folder_(folder),
        config_(config),
        engine_(engine),
        reporter_(reporter) {}

  /// Cleans up what earlier saves left, then loads what `mode` asks for ("auto", "never", a path)
  /// into the engine. Nothing: there is none and the run starts fresh. Collective; throws
  /// AgreedError: kUsage ("never" beside a checkpoint, a setting that a resume cannot change),
  /// kCheckpoint, kBadData (another data set).
  std::optional<RunProgress> resume(const std::string& mode, const std::string& data_fingerprint);

  /// Collective; returns the checkpoint's path. Throws AgreedError.
  std::string save(const RunProgress& progress);

 private:
  std::optional<std::string> choose(const std::string& mode) const;
  void require_same_run(const std::string& path, const std::string& data_fingerprint) const;

  Communicator& communicator_;
  const RunFolder& folder_;
  const proto::RunConfig& config_;
  Engine& engine_;
  RunReporter& reporter_;
};

}  // namespace flashshard
