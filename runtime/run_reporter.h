// What a run shows and writes as it goes: tables, step lines and the progress bar, metrics.jsonl,
// TensorBoard, memory.json. Rank 0 speaks for all; on other ranks only the log exists.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "proto/run.pb.h"
#include "runtime/metrics/console.h"
#include "runtime/metrics/event_file.h"
#include "runtime/metrics/memory_report.h"
#include "runtime/metrics/metrics_file.h"
#include "runtime/metrics/rank_logger.h"
#include "runtime/metrics/tables.h"
#include "runtime/run_folder.h"

namespace flashshard {

class RunReporter {
 public:
  /// Opens the rank's log. Throws Error(kUsage, kOutOfSpace).
  RunReporter(const RunFolder& folder, int rank);

  /// Rank 0: opens metrics.jsonl and the event file to go on after `last_step` and keeps what lines
  /// need.
  void begin(const RunFolder& folder, const proto::RunConfig& config, int64_t last_step,
             double flops_per_token, int world_size);

  void settings(const proto::RunConfig& config);
  void model(const metrics::ModelSummary& summary);
  /// The memory table of rank 0 and memory.json of all ranks.
  void memory(const RunFolder& folder, std::span<const metrics::RankMemory> ranks,
              int64_t parameters, bool show);
  void step(const metrics::StepMetrics& step);
  void validation(int64_t step, double loss, double tokens_per_second);
  void summary(const metrics::RunSummary& summary);

  void info(std::string_view line);
  void warning(std::string_view line);
  /// Into the log file alone: what went wrong, for the launcher's own line on stderr not to be
  /// doubled.
  void log_error(std::string_view line);

 private:
  void show_progress(int64_t step);

  int rank_;
  metrics::Console console_;
  std::shared_ptr<spdlog::logger> logger_;
  std::optional<metrics::MetricsFile> metrics_;
  std::optional<metrics::EventFile> events_;
  proto::RunConfig config_;
  int64_t first_step_ = 0;
  double flops_per_token_ = 0;
  int world_size_ = 1;
  int64_t system_memory_ = 0;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

}  // namespace flashshard
