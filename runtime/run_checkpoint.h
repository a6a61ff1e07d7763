// Saving and resuming a run: what stands in the checkpoint beside the tensors, and what may change
// between the two.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "comm/communicator.h"
#include "optim/stopwatch.h"
#include "proto/run.pb.h"
#include "runtime/checkpoint/background_save.h"
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
                Engine& engine, RunReporter& reporter,
                checkpoint::FileSystem& file_system = checkpoint::posix_file_system())
      : communicator_(communicator),
        folder_(folder),
        config_(config),
        engine_(engine),
        reporter_(reporter),
        file_system_(file_system) {}
  ~RunCheckpoint() { engine_.optimizer().set_before_update({}); }
  RunCheckpoint(const RunCheckpoint&) = delete;
  RunCheckpoint& operator=(const RunCheckpoint&) = delete;

  /// Cleans up what earlier saves left, then loads what `mode` asks for ("auto", "never", a path)
  /// into the engine. Nothing: there is none and the run starts fresh. Collective; throws
  /// AgreedError: kUsage ("never" beside a checkpoint, a setting that a resume cannot change),
  /// kCheckpoint, kBadData (another data set).
  std::optional<RunProgress> resume(const std::string& mode, const data::DatasetManifest& data);

  /// Begins with the master weights of the checkpoint `argument` (model.initialize_from), saved by
  /// any number of ranks: states are fresh. Collective; throws AgreedError: kCheckpoint (damaged,
  /// other shapes or dtype), kUsage (another tokenizer than `data`'s, no such checkpoint).
  void start_from(const std::string& argument, const data::DatasetManifest& data);

  /// Collective: waits for a save in flight, then for this one. Throws AgreedError.
  void save(const RunProgress& progress);

  /// From now on begin() lets training go on (checkpoint.async): updates of the engine wait for
  /// what is still to be copied. Throws Error(kUsage): checkpoint.staging_bytes is too small.
  void save_in_background();
  /// Collective, between two steps: save(), or what goes on while training does.
  void begin(const RunProgress& progress);
  /// What a rank tells the others once a step: where its thread is.
  checkpoint::BackgroundSave::Progress progress() const;
  /// Collective, between two steps, with what the ranks told: goes on with a save in flight where
  /// all are at rest or one has failed. Throws AgreedError: it was not saved.
  void advance(bool all_at_rest, bool some_failed);
  /// Collective: waits for a save in flight. Throws AgreedError.
  void finish();

  /// This error ends the run, whatever a save in flight still does.
  void leave_with(ExitCode code, std::string_view message);

  /// The last one saved; empty: none.
  const std::string& last_saved() const { return last_saved_; }
  /// Milliseconds that saving has held up this rank between its steps since the last call.
  double take_wait_ms() { return std::exchange(wait_ms_, 0); }
  /// Milliseconds from begin to end of a save that training went on beside, once after its end.
  std::optional<double> take_background_ms() { return std::exchange(background_ms_, std::nullopt); }

 private:
  checkpoint::SaveRequest request(const RunProgress& progress) const;
  void report(const checkpoint::SaveResult& saved);
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
  checkpoint::FileSystem& file_system_;
  std::unique_ptr<checkpoint::BackgroundSave> background_;  // null: every save is waited for
  Stopwatch in_flight_since_;
  std::string last_saved_;
  double wait_ms_ = 0;
  std::optional<double> background_ms_;
};

}  // namespace flashshard
