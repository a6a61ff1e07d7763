// metrics.jsonl: one JSON object a step. Keys are documented in docs/metrics.md; scripts rely on
// them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "runtime/metrics/durable_file.h"

namespace flashshard::metrics {

/// Times are milliseconds of wall clock: of the slowest rank for data, forward and backward, of
/// rank 0 for the rest.
struct StepMetrics {
  int64_t step = 0;              // steps taken since the run began, this one included
  double loss = 0;               // nats per token over the step's tokens of all ranks
  double grad_norm = 0;          // before clipping
  double clip_coefficient = 1;   // factor on the gradient, at most 1
  double learning_rate = 0;      // of this step
  int64_t tokens = 0;            // training tokens consumed since the run began
  double tokens_per_second = 0;  // all ranks together
  double step_ms = 0;            // the whole step
  double data_ms = 0;            // waiting for the batch
  double forward_ms = 0;
  double backward_ms = 0;
  double reduce_ms = 0;                   // gradient reduction
  double update_ms = 0;                   // optimizer update
  double gather_ms = 0;                   // of weights, and of reduced gradients
  double exposed_comm_ms = 0;             // communication that no computation hid
  int64_t slowest_rank = 0;               // the rank the others waited for
  int64_t peak_bytes = 0;                 // most memory held so far on any rank
  int64_t skipped_steps = 0;              // steps skipped since the run began
  int64_t nonfinite = 0;                  // 1 when this step met a non-finite gradient, else 0
  std::map<std::string, int64_t> health;  // counters of the numeric formats; empty when not sampled
  double save_wait_ms = 0;  // saving held up the slowest rank, since the update before this step's
  std::optional<double> save_background_ms;  // of a save whose end the line is the first after
  std::optional<double> validation_loss;     // nats per token, at steps that validate
};

/// The object on one line, without the line's end. Non-finite numbers are the strings "nan", "inf",
/// "-inf".
std::string to_json_line(const StepMetrics& metrics);

class MetricsFile {
 public:
  struct Opened {
    int64_t kept_lines = 0;
    int64_t dropped_lines = 0;  // of later steps, and lines torn by a crash
  };

  /// Opens the file to go on after `last_step` (0: from the beginning): lines of later steps and
  /// torn lines are dropped, so no step appears twice. The shorter file replaces the longer one
  /// atomically. Throws Error(kOutOfSpace or kUsage).
  MetricsFile(const std::filesystem::path& path, int64_t last_step);

  /// Appends one whole line. Throws Error(kOutOfSpace or kUsage); then nothing of it stands in the
  /// file.
  void append(const StepMetrics& metrics);

  const Opened& opened() const { return opened_; }

 private:
  Opened opened_;
  AppendFile file_;
};

}  // namespace flashshard::metrics
