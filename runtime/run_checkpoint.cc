#include "runtime/run_checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>

#include "runtime/agreement.h"
#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/load.h"
#include "runtime/checkpoint/save.h"
#include "runtime/config/run_config.h"
#include "runtime/parameter_groups.h"

namespace flashshard {
namespace {

constexpr const char* kSkippedSteps = "skipped_steps";
constexpr const char* kPreviousNorm = "previous_norm_bits";  // of the fp64 number
constexpr const char* kBackend = "backend";
constexpr const char* kDataFingerprint = "data_fingerprint";
constexpr const char* kTokenizer = "tokenizer";

/// run.dir/tokenizer of run.dir/checkpoints/step-N.
std::filesystem::path tokenizer_beside(const std::string& step_folder) {
  std::error_code ignored;
  std::filesystem::path step = std::filesystem::weakly_canonical(step_folder, ignored);
  if (!step.has_filename()) step = step.parent_path();
  return step.parent_path().parent_path() / "tokenizer";
}

}  // namespace

std::optional<data::TokenizerIdentity> tokenizer_of(const checkpoint::RunState& run) {
  const auto recorded = run.environment.find(kTokenizer);
  if (recorded == run.environment.end()) return std::nullopt;
  return data::parse_identity(recorded->second);
}

std::filesystem::path tokenizer_folder(const std::string& step_folder,
                                       const std::string& data_path) {
  // Unless somebody has moved it.
  const auto beside = tokenizer_beside(step_folder);
  std::error_code ignored;
  return std::filesystem::is_directory(beside, ignored) ? beside : std::filesystem::path(data_path);
}

void copy_tokenizer(const std::string& from, const std::string& to) {
  const checkpoint::RunState run = checkpoint::read_run_state(from);
  const auto identity = tokenizer_of(run);
  if (!identity || !identity->has_model_file()) return;
  const auto target = tokenizer_beside(to);
  std::error_code ignored;
  if (std::filesystem::exists(target, ignored)) return;
  const proto::RunConfig config = parse_run_config(run.config, from + ": its configuration", {});
  const auto source = tokenizer_folder(from, config.data().path());
  // An empty folder would hide what lies with the data.
  const auto file =
      source / (identity->kind == "hf" ? data::kHuggingFaceFile : data::kSentencePieceFile);
  if (!std::filesystem::exists(file, ignored)) {
    throw Error(ExitCode::kBadData, "the checkpoint's tokenizer is not there", file.string(),
                "copy it to " + target.string());
  }
  data::save_tokenizer_files(source, target);
}

void require_same_tokenizer(const checkpoint::RunState& run, const std::string& checkpoint_path,
                            const data::DatasetManifest& data) {
  const auto recorded = tokenizer_of(run);
  if (!recorded || !recorded->is_known() || !data.identity().is_known()) return;
  if (recorded->same_ids(data.identity())) return;
  throw Error(ExitCode::kUsage,
              fmt::format("the checkpoint's tokens are those of the tokenizer `{}`, the data's of "
                          "`{}`",
                          recorded->text(), data.identity().text()),
              checkpoint_path,
              "prepare the text with the tokenizer that the model was trained with");
}

std::optional<std::string> RunCheckpoint::choose(const std::string& mode) const {
  const std::string folder = folder_.checkpoints_directory().string();
  if (mode != "auto" && mode != "never") return checkpoint::resolve(mode);
  auto newest = checkpoint::find_latest_complete(folder);
  if (newest && mode == "never") {
    throw Error(ExitCode::kUsage, "--resume never, but this run folder holds a checkpoint", *newest,
                "choose another run.dir, or resume with --resume auto");
  }
  return newest;
}

void RunCheckpoint::require_same_run(const std::string& path,
                                     const data::DatasetManifest& data) const {
  const checkpoint::RunState saved = checkpoint::read_run_state(path);
  const proto::RunConfig before = parse_run_config(saved.config, path + ": its configuration", {});
  for (const ConfigDifference& difference : differences(before, config_)) {
    if (!difference.fixed_at_resume) continue;
    const bool is_model = difference.path.starts_with("model.");
    throw Error(is_model ? ExitCode::kCheckpoint : ExitCode::kUsage,
                fmt::format("{} was {} when the checkpoint was saved and is {} now",
                            difference.path, difference.before, difference.after),
                path, "set it back, or start a new run in another run.dir");
  }
  require_same_states(before.optimizer(), config_.optimizer(), engine_.layout().parameters(), path);
  if (config_.parallelism().reproducible()) require_same_bits(saved, before, path);
  require_same_tokenizer(saved, path, data);
  const auto fingerprint = saved.environment.find(kDataFingerprint);
  if (fingerprint == saved.environment.end() || fingerprint->second != data.fingerprint()) {
    throw Error(ExitCode::kBadData, "the checkpoint was trained on other data than data.path holds",
                config_.data().path(), "prepare the same text again, or start a new run");
  }
  if (saved.step > config_.train().steps()) {
    throw Error(ExitCode::kUsage,
                fmt::format("the checkpoint is at step {}, beyond train.steps {}", saved.step,
                            config_.train().steps()),
                path);
  }
}

void RunCheckpoint::require_same_bits(const checkpoint::RunState& saved,
                                      const proto::RunConfig& before,
                                      const std::string& path) const {
  constexpr std::array<std::string_view, 3> pinned = {"train.micro_batch", "train.global_batch",
                                                      "run.threads"};
  for (const ConfigDifference& difference : differences(before, config_)) {
    if (std::ranges::find(pinned, difference.path) == pinned.end()) continue;
    throw Error(ExitCode::kUsage,
                fmt::format("{} was {} when the checkpoint was saved and is {} now: a reproducible "
                            "run keeps what decides its bits",
                            difference.path, difference.before, difference.after),
                path, "set it back, or start a new run in another run.dir");
  }
  const auto backend = saved.environment.find(kBackend);
  const std::string_view here = engine_.backend().environment();
  if (backend != saved.environment.end() && backend->second == here) return;
  throw Error(ExitCode::kUsage,
              fmt::format("a reproducible run must go on with what computed it: `{}`, here it is "
                          "`{}`",
                          backend == saved.environment.end() ? "unknown" : backend->second, here),
              path, "resume on the same kind of processor with the same libraries");
}

std::optional<RunProgress> RunCheckpoint::resume(const std::string& mode,
                                                 const data::DatasetManifest& data) {
  std::string path;
  run_and_agree(communicator_, [&] {
    if (communicator_.rank() != 0) return;
    // A start that is refused changes nothing on disk.
    const auto chosen = choose(mode);
    if (chosen) require_same_run(*chosen, data);
    path = chosen.value_or("");
    for (const std::string& name : checkpoint::clean_up(folder_.checkpoints_directory().string())) {
      reporter_.info(fmt::format("removed what an interrupted save left: {}", name));
    }
  });
  path = broadcast_text(communicator_, "waiting for the choice of a checkpoint", path);
  if (path.empty()) return std::nullopt;

  checkpoint::LoadRequest request;
  request.step_folder = path;
  request.layout = &engine_.layout();
  const auto views = engine_.state().shard_views();
  request.views = views;
  checkpoint::RunState saved;
  saved = checkpoint::load(request, communicator_);
  engine_.optimizer().set_updates(saved.applied_updates);
  if (const auto norm = saved.counters.find(kPreviousNorm); norm != saved.counters.end()) {
    engine_.optimizer().set_previous_norm(std::bit_cast<double>(norm->second));
  }
  engine_.optimizer().share_state();

  RunProgress progress;
  progress.step = saved.step;
  progress.sequences = saved.sequences_consumed;
  progress.tokens = saved.tokens_consumed;
  if (const auto skipped = saved.counters.find(kSkippedSteps); skipped != saved.counters.end()) {
    progress.skipped_steps = skipped->second;
  }
  progress.data = data;
  reporter_.info(
      fmt::format("resumed from {}: step {} of {}", path, saved.step, config_.train().steps()));
  return progress;
}

void RunCheckpoint::start_from(const std::string& argument, const data::DatasetManifest& data) {
  // Chosen once: the run that it belongs to may be saving.
  std::string path;
  run_and_agree(communicator_, [&] {
    if (communicator_.rank() == 0) path = checkpoint::resolve(argument);
  });
  path = broadcast_text(communicator_, "waiting for the choice of a checkpoint", path);
  run_and_agree(communicator_, [&] {
    const checkpoint::RunState saved = checkpoint::read_run_state(path);
    require_same_tokenizer(saved, path, data);
    require_same_model(saved, path);
    if (communicator_.rank() == 0) {
      reporter_.info(fmt::format("starts with the weights of {}, step {}", path, saved.step));
    }
  });
  engine_.start_from_weights(path, communicator_);
}

void RunCheckpoint::require_same_model(const checkpoint::RunState& saved,
                                       const std::string& path) const {
  const proto::RunConfig before = parse_run_config(saved.config, path + ": its configuration", {});
  const LlamaOptions theirs = llama_options(before, 0), ours = engine_.model_options();
  // Two models may share every shape and read the same weights as something else.
  const auto require = [&](bool same, std::string_view field) {
    if (same) return;
    throw Error(ExitCode::kCheckpoint,
                fmt::format("the checkpoint's model has another {} than this run's", field), path,
                "set it as the checkpoint's run had it");
  };
  require(theirs.heads == ours.heads, "model.heads");
  require(theirs.kv_heads == ours.kv_heads, "model.kv_heads");
  require(theirs.head_dim == ours.head_dim, "model.head_dim");
  // These may be meant, as in a continuation with longer sequences.
  if (communicator_.rank() != 0) return;
  for (const ConfigDifference& difference : differences(before, config_)) {
    if (!difference.path.starts_with("model.rope_") && difference.path != "model.norm_epsilon") {
      continue;
    }
    reporter_.warning(fmt::format("{} was {} in {} and is {} now", difference.path,
                                  difference.before, path, difference.after));
  }
}

checkpoint::SaveRequest RunCheckpoint::request(const RunProgress& progress) const {
  checkpoint::SaveRequest request;
  request.folder = folder_.checkpoints_directory().string();
  request.run.step = progress.step;
  request.run.applied_updates = engine_.optimizer().updates();
  request.run.sequences_consumed = progress.sequences;
  request.run.tokens_consumed = progress.tokens;
  request.run.model = config_.model().preset().empty() ? "llama" : config_.model().preset();
  request.run.config = to_text(config_);
  request.run.environment = {{kBackend, std::string(engine_.backend().environment())},
                             {kDataFingerprint, progress.data.fingerprint()},
                             {kTokenizer, progress.data.identity().text()}};
  request.run.rng_keys = {{"seed", config_.run().seed()}};
  request.run.counters = {
      {kSkippedSteps, progress.skipped_steps},
      {kPreviousNorm, std::bit_cast<int64_t>(engine_.optimizer().previous_norm())}};
  request.shard = engine_.state().placement().own();
  request.zstd_level = config_.checkpoint().zstd_level();
  request.keep_last = config_.checkpoint().keep_last();
  request.keep_every = config_.checkpoint().keep_every();
  request.file_system = &file_system_;
  return request;
}

void RunCheckpoint::report(const checkpoint::SaveResult& saved) {
  for (const std::string& warning : saved.warnings) reporter_.warning(warning);
  // Of the state in memory: `flashshard hash` must find the same in the files.
  reporter_.info(fmt::format("saved {}, hash {}", saved.path, saved.hash.total().hex()));
  last_saved_ = saved.path;
}

void RunCheckpoint::save(const RunProgress& progress) {
  finish();
  const Stopwatch watch;
  checkpoint::SaveRequest now = request(progress);
  now.layout = &engine_.layout();
  const auto views = engine_.state().shard_views();
  now.views = views;
  report(checkpoint::save(now, communicator_));
  wait_ms_ += watch.milliseconds();
}

void RunCheckpoint::leave_with(ExitCode code, std::string_view message) {
  if (background_) background_->leave_with(code, message);
}

void RunCheckpoint::save_in_background() {
  // Half of what ranks wait for each other: the rank whose storage is silent is the first to say
  // so.
  const std::chrono::duration<double> deadline(config_.run().deadline_seconds() / 2);
  background_ = std::make_unique<checkpoint::BackgroundSave>(
      communicator_, checkpoint::BackgroundSave::Source{
                         engine_.layout(), engine_.state().placement().own(),
                         engine_.state().shard_views(), engine_.save_staging(), deadline});
  engine_.optimizer().set_before_update([this](const Bucket& bucket) {
    const BucketPlan& plan = engine_.optimizer().buckets();
    const int own = engine_.state().placement().own();
    for (const BucketSegment& segment : bucket.segments) {
      background_->wait_until_copied(segment.tensor, plan.rows(segment, own));
    }
  });
}

void RunCheckpoint::begin(const RunProgress& progress) {
  if (!background_) return save(progress);
  finish();
  const Stopwatch watch;
  in_flight_since_ = Stopwatch();
  background_->begin(request(progress));
  wait_ms_ += watch.milliseconds();
}

checkpoint::BackgroundSave::Progress RunCheckpoint::progress() const {
  return background_ ? background_->progress() : checkpoint::BackgroundSave::Progress::kAtRest;
}

void RunCheckpoint::advance(bool all_at_rest, bool some_failed) {
  if (!background_ || !background_->in_flight() || !(all_at_rest || some_failed)) return;
  const Stopwatch watch;
  if (const auto saved = background_->advance(some_failed)) {
    report(*saved);
    background_ms_ = in_flight_since_.milliseconds();
  }
  wait_ms_ += watch.milliseconds();
}

void RunCheckpoint::finish() {
  if (!background_ || !background_->in_flight()) return;
  const Stopwatch watch;
  report(background_->finish());
  background_ms_ = in_flight_since_.milliseconds();
  wait_ms_ += watch.milliseconds();
}

}  // namespace flashshard
