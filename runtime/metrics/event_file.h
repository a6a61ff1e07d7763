// TensorBoard event files: records of TensorFlow's TFRecord format that hold
// proto/tensorboard.proto Events.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/metrics/durable_file.h"
#include "runtime/metrics/metrics_file.h"

namespace flashshard::tensorboard {
class Event;
}

namespace flashshard::metrics {

/// One record: length (uint64, little-endian), masked crc32c of those 8 bytes (uint32), the data,
/// its masked crc32c.
std::string frame_record(std::string_view data);

struct ScalarValue {
  std::string tag;
  double value = 0;  // stored as fp32
};

/// What TensorBoard shows of a step: loss, grad_norm, learning_rate, tps, skipped_steps, step_ms,
/// peak_bytes, health/NAME of every health counter and, at steps that validate, validation_loss.
std::vector<ScalarValue> tensorboard_scalars(const StepMetrics& metrics);

struct EventFileOptions {
  std::filesystem::path directory;
  /// The run goes on after this step: readers drop what earlier files hold of later ones.
  int64_t last_step = 0;
  /// Seconds since 1970; empty: the system's clock. Host and process id also stand in the file's
  /// name.
  std::function<double()> clock = {};
  std::string host = {};  // empty: this machine
  int process_id = 0;     // 0: this process
};

/// events.out.tfevents.<seconds>.<host>.<pid>. Every call is one write(2), so TensorBoard sees a
/// step at once.
class EventFile {
 public:
  /// Creates a new file and writes its head. Throws Error(kOutOfSpace or kUsage).
  explicit EventFile(const EventFileOptions& options);

  /// The scalars of one step, as one event.
  void add_scalars(int64_t step, std::span<const ScalarValue> values);
  /// Text shown word for word in TensorBoard's text panel (as Markdown's indented code).
  void add_code(std::string_view tag, int64_t step, std::string_view text);

  const std::filesystem::path& path() const { return file_->path(); }

 private:
  void add(tensorboard::Event& event, int64_t step);

  std::function<double()> clock_;
  std::optional<AppendFile> file_;
};

}  // namespace flashshard::metrics
