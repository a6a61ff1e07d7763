#include "runtime/run_reporter.h"

#include <fmt/format.h>

#include <array>
#include <vector>

#include "runtime/config/run_config.h"
#include "runtime/metrics/number_format.h"
#include "runtime/metrics/process_memory.h"
#include "runtime/metrics/step_line.h"

namespace flashshard {

RunReporter::RunReporter(const RunFolder& folder, int rank)
    : rank_(rank),
      logger_(metrics::make_rank_logger({rank, folder.log_path(rank)}, console_)),
      system_memory_(metrics::read_system_memory()) {}

void RunReporter::begin(const RunFolder& folder, const proto::RunConfig& config, int64_t last_step,
                        double flops_per_token, int world_size) {
  config_ = config;
  first_step_ = last_step;
  flops_per_token_ = flops_per_token;
  world_size_ = world_size;
  started_ = std::chrono::steady_clock::now();
  if (rank_ != 0) return;
  metrics_.emplace(folder.metrics_path(), last_step);
  metrics::EventFileOptions events;
  events.directory = folder.tensorboard_directory();
  events.last_step = last_step;
  events_.emplace(events);
  events_->add_code("config", last_step, to_text(config));
}

void RunReporter::settings(const proto::RunConfig& config) {
  std::vector<metrics::Setting> rows;
  for (const ConfigDifference& setting : differences(proto::RunConfig(), config)) {
    rows.push_back({setting.path, setting.after});
  }
  info(metrics::settings_table(rows));
}

void RunReporter::model(const metrics::ModelSummary& summary) {
  info(metrics::model_table(summary));
}

void RunReporter::memory(const RunFolder& folder, std::span<const metrics::RankMemory> ranks,
                         int64_t parameters, bool show) {
  if (rank_ != 0) return;
  metrics::write_memory_json(folder.memory_path(), ranks, parameters);
  if (!show) return;
  info(metrics::memory_table(ranks[0].predicted, ranks[0].tagged, parameters));
  info(fmt::format("seen from outside: resident memory grew by {} since before the first arena",
                   metrics::format_bytes(ranks[0].seen_from_outside)));
}

void RunReporter::step(const metrics::StepMetrics& step) {
  if (rank_ != 0) return;
  metrics_->append(step);
  events_->add_scalars(step.step, metrics::tensorboard_scalars(step));
  if (step.step % config_.train().log_every() == 0 || step.step == config_.train().steps()) {
    metrics::StepLine line;
    line.step = step.step;
    line.loss = step.loss;
    line.grad_norm = step.grad_norm;
    line.memory = {metrics::read_process_memory().resident, system_memory_};
    line.tokens_per_second = step.tokens_per_second;
    line.tflops = step.tokens_per_second * flops_per_token_ / world_size_ / 1e12;
    info(metrics::format_step_line(line));
  }
  show_progress(step.step);
}

void RunReporter::validation(int64_t step, double loss, double tokens_per_second) {
  if (rank_ != 0) return;
  const metrics::MemoryUse memory = {metrics::read_process_memory().resident, system_memory_};
  info(metrics::format_validation_line({step, loss, memory, tokens_per_second}));
}

void RunReporter::summary(const metrics::RunSummary& summary) {
  console_.erase_progress();
  info(metrics::summary_table(summary));
}

void RunReporter::show_progress(int64_t step) {
  metrics::Progress progress;
  progress.step = step;
  progress.total_steps = config_.train().steps();
  progress.first_step = first_step_;
  progress.elapsed_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  console_.show_progress(progress);
}

void RunReporter::info(std::string_view line) { logger_->info(line); }
// All ranks have the same warnings; people want them once.
void RunReporter::warning(std::string_view line) {
  if (rank_ == 0) {
    logger_->warn(line);
  } else {
    logger_->debug("warning: {}", line);
  }
}
void RunReporter::log_error(std::string_view line) { logger_->debug("error: {}", line); }

}  // namespace flashshard
