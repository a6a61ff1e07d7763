#include "runtime/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cuda/device.h"
#include "optim/stopwatch.h"
#include "runtime/agreement.h"
#include "runtime/config/run_config.h"
#include "runtime/config/schedule_options.h"
#include "runtime/data/micro_batch_schedule.h"
#include "runtime/data/prefetcher.h"
#include "runtime/data/sequence_sampler.h"
#include "runtime/data/token_dataset.h"
#include "runtime/engine.h"
#include "runtime/evaluate.h"
#include "runtime/gradient_pass.h"
#include "runtime/losses.h"
#include "runtime/metrics/process_memory.h"
#include "runtime/metrics/status_file.h"
#include "runtime/metrics/trace_file.h"
#include "runtime/numerics_check.h"
#include "runtime/parameter_groups.h"
#include "runtime/run_checkpoint.h"
#include "runtime/run_folder.h"
#include "runtime/run_reporter.h"
#include "runtime/same_program.h"
#include "runtime/step_report.h"
#include "runtime/stop_signal.h"

namespace flashshard {
namespace {

class Trainer {
 public:
  Trainer(Communicator& communicator, const TrainRequest& request, RunFolder& folder,
          metrics::StatusFile& status)
      : communicator_(communicator),
        config_(request.config),
        resume_(request.resume),
        storage_(*request.storage),
        folder_(folder),
        status_(status),
        reporter_(folder, communicator.rank()),
        stop_signal_(communicator.rank() == 0 ? folder.stop_path() : std::filesystem::path()),
        numerics_(request.config, [this](std::string_view line) { reporter_.warning(line); }) {}

  ExitCode run();
  int64_t last_step() const { return progress_.step; }
  void log_error(std::string_view message) { reporter_.log_error(message); }
  /// After an error that all ranks share: what they have begun together is finished together.
  void finish_transfers();
  void leave_with(ExitCode code, std::string_view message) {
    if (checkpoint_) checkpoint_->leave_with(code, message);
  }

 private:
  void open_data();
  void require_vocabulary() const;
  void start_or_resume();
  void announce();
  void report_memory(bool show);
  StepReport compute_gradients(double learning_rate);
  void announce_reproducible();
  StepShape step_shape() const;
  void save_trace(TracedBackend& traced);
  void one_step();
  std::optional<double> validate();
  void count_skip(const StepOutcome& outcome);
  void save();
  bool last() const { return progress_.step >= config_.train().steps(); }
  bool due(int64_t every) const { return every > 0 && progress_.step % every == 0; }
  void set_status(metrics::RunState state);
  void summarize();
  std::string outcome_of_run() const;
  ExitCode finish();

  Communicator& communicator_;
  proto::RunConfig config_;
  std::string resume_;
  checkpoint::FileSystem& storage_;
  RunFolder& folder_;
  metrics::StatusFile& status_;
  RunReporter reporter_;
  StopSignal stop_signal_;
  NumericsCheck numerics_;

  std::optional<data::TokenDataset> train_data_;
  std::optional<data::TokenDataset> validation_data_;
  std::optional<data::SequenceSampler> sampler_;
  std::optional<data::MicroBatchSchedule> micro_batches_;
  std::unique_ptr<Engine> engine_;
  std::optional<RunCheckpoint> checkpoint_;
  std::unique_ptr<data::Prefetcher> prefetcher_;

  RunProgress progress_;
  int64_t consecutive_skips_ = 0;
  StopCause stop_ = StopCause::kNone;
  std::optional<double> validation_loss_;
  double last_loss_ = std::numeric_limits<double>::quiet_NaN();
  int64_t peak_bytes_ = 0;
  double held_ms_ = 0;        // the last update, by a save
  int64_t local_tokens_ = 0;  // what this rank's gradients of the step sum over
  int64_t tokens_here_ = 0;   // trained in this process
  Stopwatch clock_;
};

ExitCode Trainer::run() {
  run_and_agree(communicator_, [&] { open_data(); });
  run_and_agree(communicator_, [&] {
    engine_ = std::make_unique<Engine>(communicator_, config_, train_data_->vocab_size());
  });
  require_same_program(communicator_, config_.parallelism().reproducible()
                                          ? engine_->backend().environment()
                                          : std::string_view());
  start_or_resume();
  run_and_agree(communicator_, [&] {
    reporter_.begin(folder_, config_, progress_.step,
                    engine_->model().flops_per_token(config_.train().sequence_length()),
                    communicator_.world_size());
    if (communicator_.rank() != 0) return;
    folder_.write_config(to_text(config_));
    if (progress_.data.identity().has_model_file()) {
      data::save_tokenizer_files(config_.data().path(), folder_.tokenizer_directory());
    }
  });
  announce();
  numerics_.before_first_step(communicator_, engine_->backend(), engine_->state());
  set_status(metrics::RunState::kRunning);
  data::Prefetcher::Options prefetch;
  prefetch.sequences = config_.train().micro_batch();
  prefetch.sequence_length = config_.train().sequence_length();
  prefetch.schedule = *micro_batches_;
  prefetch.document_starts = attention_scope(config_) == AttentionScope::kDocument;
  prefetch.fill = [this](int64_t first, int64_t count, const data::SequenceBuffers& buffers) {
    sampler_->fill(first, count, buffers);
  };
  if (last()) {
    reporter_.info(
        fmt::format("nothing left to do: the run has all its {} steps; raise train.steps to go on",
                    config_.train().steps()));
    return finish();
  }
  prefetcher_ = std::make_unique<data::Prefetcher>(std::move(prefetch));
  clock_ = Stopwatch();
  while (!last() && stop_ == StopCause::kNone) one_step();
  checkpoint_->finish();
  summarize();
  return finish();
}

void Trainer::open_data() {
  train_data_.emplace(data::TokenDataset::open(config_.data().path(), data::Split::kTrain));
  if (train_data_->manifest().token_count(data::Split::kValidation) > 0) {
    validation_data_.emplace(
        data::TokenDataset::open(config_.data().path(), data::Split::kValidation));
  }
  require_vocabulary();
  if (attention_scope(config_) == AttentionScope::kDocument) {
    train_data_->require_documents();
    if (validation_data_) validation_data_->require_documents();
  }
  // Resolved here and saved with the run: a trained model must know its vocabulary without the
  // data.
  if (config_.model().vocab_size() == 0) {
    config_.mutable_model()->set_vocab_size(train_data_->vocab_size());
  }
  data::SequenceSampler::Options options;
  options.seed = config_.run().seed();
  options.sequence_length = config_.train().sequence_length();
  sampler_.emplace(*train_data_, options);
}

void Trainer::require_vocabulary() const {
  const data::DatasetManifest& manifest = train_data_->manifest();
  const int64_t rows = config_.model().vocab_size();
  if (manifest.identity().is_known()) return;  // the model's options are compared with it
  const int64_t largest =
      std::max(manifest.vocab_size, validation_data_ ? validation_data_->manifest().vocab_size : 0);
  if (rows >= largest) return;
  throw Error(rows == 0 ? ExitCode::kUsage : ExitCode::kBadData,
              rows == 0 ? fmt::format("{} shards do not say how large their vocabulary is; their "
                                      "largest id is {}",
                                      manifest.tokenizer, largest - 1)
                        : fmt::format("the data's token ids up to {} do not fit the model's "
                                      "vocabulary of {}",
                                      largest - 1, rows),
              config_.data().path(), "set model.vocab_size to that of the tokenizer");
}

void Trainer::start_or_resume() {
  checkpoint_.emplace(communicator_, folder_, config_, *engine_, reporter_, storage_);
  progress_.data = train_data_->manifest();
  if (const auto resumed = checkpoint_->resume(resume_, progress_.data)) {
    progress_ = *resumed;
  } else if (!config_.model().initialize_from().empty()) {
    checkpoint_->start_from(config_.model().initialize_from(), progress_.data);
  } else {
    engine_->initialize(config_.run().seed());
  }
  data::MicroBatchSchedule::Options options;
  options.global_batch = config_.train().global_batch();
  options.micro_batch = config_.train().micro_batch();
  options.rank = communicator_.rank();
  options.world_size = communicator_.world_size();
  options.first_sequence = progress_.sequences;
  run_and_agree(communicator_, [&] {
    micro_batches_.emplace(options);
    if (engine_->saves_in_background()) checkpoint_->save_in_background();
  });
}

void Trainer::announce() {
  reporter_.settings(config_);
  const LlamaOptions& m = engine_->model_options();
  metrics::ModelSummary summary;
  summary.name = config_.model().preset().empty() ? "llama" : config_.model().preset();
  summary.dtype = m.dtype == DType::kFP32 ? "fp32" : "bf16";
  summary.layers = m.layers;
  summary.hidden_size = m.hidden_size;
  summary.attention_heads = m.heads;
  summary.key_value_heads = m.kv_heads;
  summary.vocabulary = m.vocab_size;
  summary.parameters = engine_->parameters();
  summary.sequence_length = config_.train().sequence_length();
  summary.global_batch = config_.train().global_batch();
  summary.ranks = communicator_.world_size();
  reporter_.model(summary);
  const std::string groups =
      parameter_group_table(config_.optimizer(), engine_->layout().parameters());
  if (!groups.empty()) reporter_.info(groups);
  reporter_.info(engine_->threads().text);
  report_memory(true);
  if (engine_->sharding().reproducible) announce_reproducible();
  if (const auto device = visible_cuda_device()) {
    reporter_.info(fmt::format("{} is visible; this version computes on the CPU", device->name));
  }
}

void Trainer::announce_reproducible() {
  const int64_t ranks = communicator_.world_size(), rounds = step_shape().rounds();
  const auto wire = static_cast<int64_t>(size_of(engine_->model_options().dtype));
  const double sent = static_cast<double>(rounds * engine_->parameters() * wire) *
                      static_cast<double>(ranks - 1) / static_cast<double>(ranks);
  const auto accumulator = engine_->tagged()[MemoryClass::kAccumulator];
  constexpr double kMiB = 1 << 20;
  reporter_.info(fmt::format(
      "reproducible at any number of ranks. Its cost: {} reductions a step instead of 1, {:.1f} "
      "MiB "
      "sent by each rank; {:.1f} MiB of accumulator; {} threads a rank",
      rounds, sent / kMiB, static_cast<double>(accumulator) / kMiB, config_.run().threads()));
}

void Trainer::report_memory(bool show) {
  std::vector<metrics::RankMemory> ranks(static_cast<size_t>(communicator_.world_size()));
  metrics::RankMemory& own = ranks[static_cast<size_t>(communicator_.rank())];
  own.predicted = engine_->predicted();
  own.tagged = engine_->tagged();
  own.seen_from_outside = metrics::read_process_memory().resident - engine_->resident_before();
  gather_plain(communicator_, "waiting for the memory tables", std::span(ranks));
  reporter_.memory(folder_, ranks, engine_->parameters(), show);
}

StepShape Trainer::step_shape() const {
  return {config_.train().global_batch() / config_.train().micro_batch(),
          communicator_.world_size(), communicator_.rank()};
}

StepReport Trainer::compute_gradients(double learning_rate) {
  const StepShape shape = step_shape();
  const PassResult pass =
      GradientPass(*engine_, *prefetcher_, shape, config_.train().sequence_length())
          .run(learning_rate);
  local_tokens_ = pass.tokens;
  const LossResult loss =
      sum_in_order(communicator_, "waiting for the losses of a step", pass.losses, shape.rounds());
  std::vector<RankReport> ranks(static_cast<size_t>(communicator_.world_size()));
  RankReport& own = ranks[static_cast<size_t>(communicator_.rank())];
  own.data_ms = pass.data_ms;
  own.forward_ms = pass.forward_ms;
  own.backward_ms = pass.backward_ms;
  own.peak_bytes = metrics::read_process_memory().peak_resident;
  own.stop_cause = static_cast<int64_t>(stop_signal_.poll().cause);
  own.save = static_cast<int64_t>(checkpoint_->progress());
  own.save_wait_ms = checkpoint_->take_wait_ms() + std::exchange(held_ms_, 0);
  own.rejected_groups = engine_->optimizer().rejected_groups();
  own.health = engine_->optimizer().health();
  gather_plain(communicator_, "waiting for the reports of a step", std::span(ranks));
  return combine(loss, ranks);
}

void Trainer::one_step() {
  const Stopwatch watch;
  const double learning_rate = schedule_of(config_).learning_rate(progress_.step);
  TracedBackend* const traced =
      progress_.step + 1 == config_.run().profile() ? engine_->traced_backend() : nullptr;
  if (traced != nullptr) traced->start();
  const StepReport report = compute_gradients(learning_rate);
  const StepOutcome outcome = engine_->optimizer().step(learning_rate, local_tokens_);
  const double seconds = watch.seconds();
  if (traced != nullptr) save_trace(*traced);

  ++progress_.step;
  progress_.sequences += config_.train().global_batch();
  progress_.tokens += outcome.tokens;
  tokens_here_ += outcome.tokens;
  held_ms_ = outcome.held_ms;
  last_loss_ = report.loss;
  peak_bytes_ = std::max(peak_bytes_, report.peak_bytes);
  stop_ = report.stop;

  metrics::StepMetrics line;
  line.step = progress_.step;
  line.loss = report.loss;
  line.grad_norm = outcome.gradient_norm;
  line.clip_coefficient = outcome.clip_coefficient;
  line.learning_rate = learning_rate;
  line.tokens = progress_.tokens;
  line.tokens_per_second = static_cast<double>(outcome.tokens) / seconds;
  line.step_ms = 1e3 * seconds;
  line.data_ms = report.data_ms;
  line.forward_ms = report.forward_ms;
  line.backward_ms = report.backward_ms;
  line.reduce_ms = outcome.reduce_ms;
  line.update_ms = outcome.update_ms;
  line.gather_ms = outcome.gather_ms;
  line.exposed_comm_ms = outcome.reduce_ms + outcome.gather_ms;
  line.slowest_rank = report.slowest_rank;
  line.peak_bytes = peak_bytes_;
  line.health = {{"rejected_groups", report.rejected_groups}};
  for (const auto& [name, counter] : kHealthCounters) line.health[name] = report.health.*counter;
  if (engine_->sharding().release) line.health["skipped_buckets"] = outcome.skipped_buckets;
  line.nonfinite = outcome.nonfinite_groups > 0 ? 1 : 0;
  if (!outcome.applied) ++progress_.skipped_steps;
  line.skipped_steps = progress_.skipped_steps;
  line.save_wait_ms = report.save_wait_ms;
  line.save_background_ms = checkpoint_->take_background_ms();
  if (validation_data_ && (last() || due(config_.train().validate_every()))) {
    line.validation_loss = validate();
  }
  reporter_.step(line);
  count_skip(outcome);
  // The counters are those of the update before; in a warm-up small steps are meant.
  if (progress_.step > config_.schedule().warmup_steps() + 1) numerics_.after_update(report.health);
  set_status(metrics::RunState::kRunning);
  checkpoint_->advance(report.save_at_rest, report.save_failed);
  if (stop_ != StopCause::kNone || due(config_.checkpoint().every()) ||
      (last() && config_.checkpoint().at_end())) {
    save();
  }
}

void Trainer::save_trace(TracedBackend& traced) {
  const std::vector<TraceEvent> events = traced.stop();
  const int rank = communicator_.rank();
  run_and_agree(communicator_, [&] {
    metrics::write_trace(folder_.trace_path(rank), events, rank, communicator_.host(rank));
  });
  reporter_.info(fmt::format("step {} was recorded in {}; open it in ui.perfetto.dev",
                             progress_.step + 1, folder_.trace_path(rank).string()));
}

void Trainer::count_skip(const StepOutcome& outcome) {
  if (outcome.applied) {
    if (outcome.skipped_buckets > 0) {
      // With accumulator MOMENTS a bucket may be left out in one round and not in another.
      reporter_.warning(fmt::format("step {} left out the gradient{} of {} bucket{}: not finite",
                                    progress_.step, outcome.skipped_buckets == 1 ? "" : "s",
                                    outcome.skipped_buckets,
                                    outcome.skipped_buckets == 1 ? "" : "s"));
    }
    consecutive_skips_ = 0;
    return;
  }
  ++consecutive_skips_;
  reporter_.warning(
      fmt::format("step {} was skipped: {}; the state is unchanged", progress_.step,
                  outcome.tokens == 0 ? "it held no counted token" : "a gradient was not finite"));
  if (consecutive_skips_ < config_.optimizer().max_consecutive_skips()) return;
  if (outcome.tokens == 0) {
    throw AgreedError(
        ExitCode::kBadData,
        fmt::format("{} steps in a row had nothing to learn, the last one step {} with "
                    "no token that counts in the loss. Hint: take longer sequences "
                    "or a larger batch, or shorten the prompts",
                    consecutive_skips_, progress_.step));
  }
  throw AgreedError(ExitCode::kNonFinite,
                    fmt::format("{} steps in a row had non-finite gradients, the last one step {}. "
                                "Hint: lower optimizer.learning_rate or look at the data; the last "
                                "checkpoint is from before",
                                consecutive_skips_, progress_.step));
}

std::optional<double> Trainer::validate() {
  const Stopwatch watch;
  const EvaluationRequest request{config_.train().micro_batch(), config_.train().sequence_length(),
                                  config_.train().validation_sequences(), attention_scope(config_)};
  const auto pass = [this](const MicroBatchView* batch) { return engine_->evaluate(batch); };
  const Evaluation result = evaluate(communicator_, pass, *validation_data_, request);
  if (result.tokens == 0) {
    reporter_.warning("no token of the validation's sequences counts in the loss");
    return std::nullopt;
  }
  validation_loss_ = result.mean_loss();
  reporter_.validation(progress_.step, *validation_loss_,
                       static_cast<double>(result.tokens) / watch.seconds());
  return validation_loss_;
}

void Trainer::save() {
  set_status(metrics::RunState::kSaving);
  // With no step to go on with, what is copied would only be copied.
  if (last() || stop_ != StopCause::kNone) {
    checkpoint_->save(progress_);
  } else {
    checkpoint_->begin(progress_);
  }
  set_status(metrics::RunState::kRunning);
}

void Trainer::set_status(metrics::RunState state) {
  metrics::RankStatus status;
  status.state = state;
  status.last_step = progress_.step;
  status_.set(status);
}

void Trainer::summarize() {
  metrics::RunSummary summary;
  summary.outcome = outcome_of_run();
  summary.steps = progress_.step;
  summary.skipped_steps = progress_.skipped_steps;
  summary.tokens = progress_.tokens;
  summary.seconds = clock_.seconds();
  summary.tokens_per_second = static_cast<double>(tokens_here_) / std::max(summary.seconds, 1e-9);
  summary.loss = last_loss_;
  summary.validation_loss = validation_loss_;
  summary.peak_bytes = peak_bytes_;
  summary.checkpoint = checkpoint_->last_saved();
  reporter_.summary(summary);
}

std::string Trainer::outcome_of_run() const {
  return stop_ == StopCause::kNone ? "done" : fmt::format("stopped by {}", name_of(stop_));
}

ExitCode Trainer::finish() {
  engine_->optimizer().finish_gathers();
  report_memory(false);
  const ExitCode code = stop_ == StopCause::kNone ? ExitCode::kDone : ExitCode::kStopped;
  metrics::RankStatus status;
  status.state = stop_ == StopCause::kNone ? metrics::RunState::kDone : metrics::RunState::kStopped;
  status.exit_code = code;
  status.reason = stop_ == StopCause::kNone ? "" : outcome_of_run();
  status.last_step = progress_.step;
  status_.set(status);
  if (stop_ != StopCause::kNone) stop_signal_.honoured();
  return code;
}

void Trainer::finish_transfers() {
  if (!engine_) return;
  try {
    engine_->optimizer().finish_gathers();
    // Begun before what went wrong, of a state that was whole.
    if (checkpoint_) checkpoint_->finish();
  } catch (const Error& error) {
    reporter_.log_error(error.what());  // the first error is the one to tell
  }
}

/// Rank 0 creates the folder, the others join it: all fail together, with rank 0's reason.
RunFolder open_folder(Communicator& communicator, const std::string& directory) {
  std::optional<RunFolder> folder;
  RunTicket ticket = {};
  run_and_agree(communicator, [&] {
    if (communicator.rank() != 0) return;
    folder.emplace(RunFolder::create(directory));
    ticket = folder->ticket();
  });
  communicator.broadcast(std::as_writable_bytes(std::span(ticket)), 0)
      .wait("waiting for the ticket of run.dir");
  run_and_agree(communicator, [&] {
    if (communicator.rank() != 0) folder.emplace(RunFolder::join(directory, ticket));
  });
  return std::move(*folder);
}

}  // namespace

ExitCode train(Communicator& communicator, const TrainRequest& request) {
  RunFolder folder = open_folder(communicator, request.config.run().dir());
  metrics::StatusFile status(folder.status_path(communicator.rank()));
  int64_t last_step = 0;
  const auto failed = [&](ExitCode code, const std::string& reason) {
    metrics::RankStatus s;
    s.state = metrics::RunState::kFailed;
    s.exit_code = code;
    s.reason = reason;
    s.last_step = last_step;
    status.try_set(s);
  };
  std::optional<Trainer> trainer;
  try {
    run_and_agree(communicator, [&] {
      status.set({});
      trainer.emplace(communicator, request, folder, status);
    });
    return trainer->run();
  } catch (const Error& error) {
    if (trainer) {
      if (dynamic_cast<const AgreedError*>(&error) != nullptr) trainer->finish_transfers();
      last_step = trainer->last_step();
      trainer->log_error(error.what());
      trainer->leave_with(error.code(), error.what());
    }
    failed(error.code(), error.what());
    throw;
  } catch (const std::exception& error) {
    if (trainer) {
      last_step = trainer->last_step();
      trainer->leave_with(ExitCode::kInternal, error.what());
    }
    failed(ExitCode::kInternal, error.what());
    throw;
  }
}

}  // namespace flashshard
