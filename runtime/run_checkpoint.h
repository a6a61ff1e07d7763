// Saving and resuming a run: what stands in the checkpoint beside the tensors, and what may change
// between the two.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "comm/communicator.h"
#include "proto/run.pb.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/data/dataset_manifest.h"
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
  data::DatasetManifest data;
};

/// The tokenizer of the data that a checkpoint was trained on; nothing where nobody recorded it.
std::optional<data::TokenizerIdentity> tokenizer_of(const checkpoint::RunState& run);

/// Where the files of a checkpoint's tokenizer lie: in its run's folder, or else with the data that
/// it was trained on.
std::filesystem::path tokenizer_folder(const std::string& step_folder,
                                       const std::string& data_path);

/// Copies the files of the tokenizer of the step folder `from` to where tokenizer_folder looks
/// first for those of `to`; nothing when that folder is there, or when the tokenizer has no files.
/// Throws Error: kBadData (they are gone), kOutOfSpace, kUsage (a folder that may not be written).
void copy_tokenizer(const std::string& from, const std::string& to);

/// Throws Error(kUsage) when `data` was made with another tokenizer than the checkpoint's. Files of
/// other programs do not say what made them: their ids alone can be compared with a vocabulary.
void require_same_tokenizer(const checkpoint::RunState& run, const std::string& checkpoint_path,
                            const data::DatasetManifest& data);

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
  std::optional<RunProgress> resume(const std::string& mode, const data::DatasetManifest& data);

  /// Begins with the master weights of the checkpoint `argument` (model.initialize_from), saved by
  /// any number of ranks: states are fresh. Collective; throws AgreedError: kCheckpoint (damaged,
  /// other shapes or dtype), kUsage (another tokenizer than `data`'s, no such checkpoint).
  void start_from(const std::string& argument, const data::DatasetManifest& data);

  /// Collective; returns the checkpoint's path. Throws AgreedError.
  std::string save(const RunProgress& progress);

 private:
  std::optional<std::string> choose(const std::string& mode) const;
  /// Throws Error(kUsage) when weights of the same shapes would mean something else here; warns of
  /// what may be meant.
  void require_same_model(const checkpoint::RunState& saved, const std::string& path) const;
  /// Of a reproducible run: throws Error(kUsage) where its bits would change.
  void require_same_bits(const checkpoint::RunState& saved, const proto::RunConfig& before,
                         const std::string& path) const;
  void require_same_run(const std::string& path, const data::DatasetManifest& data) const;

  Communicator& communicator_;
  const RunFolder& folder_;
  const proto::RunConfig& config_;
  Engine& engine_;
  RunReporter& reporter_;
};

}  // namespace flashshard
