// Layout of a record: tensorflow/core/lib/io/record_writer.h. Text: the "text" plugin's string
// tensor.
#include "runtime/metrics/event_file.h"

#include <fmt/core.h>
#include <unistd.h>

#include <chrono>

#include "proto/tensorboard.pb.h"
#include "runtime/metrics/crc32c.h"
#include "runtime/metrics/host_name.h"

namespace flashshard::metrics {
namespace {

template <class Integer>
void append_little_endian(std::string& bytes, Integer value) {
  for (size_t i = 0; i < sizeof(Integer); ++i) {
    bytes.push_back(static_cast<char>(static_cast<uint8_t>(value >> (8 * i))));
  }
}

double system_clock_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string indented(std::string_view text) {
  std::string code;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    code.append("    ").append(text.substr(0, end)).append("\n");
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return code;
}

std::string file_name(const EventFileOptions& options, int64_t seconds, int attempt) {
  const std::string suffix = attempt == 0 ? "" : fmt::format(".{}", attempt);
  return fmt::format("events.out.tfevents.{:010}.{}.{}{}", seconds,
                     options.host.empty() ? host_name() : options.host,
                     options.process_id == 0 ? ::getpid() : options.process_id, suffix);
}

}  // namespace

std::string frame_record(std::string_view data) {
  std::string record;
  record.reserve(data.size() + 16);
  append_little_endian<uint64_t>(record, data.size());
  append_little_endian<uint32_t>(record, masked_crc32c(record));
  record.append(data);
  append_little_endian<uint32_t>(record, masked_crc32c(data));
  return record;
}

std::vector<ScalarValue> tensorboard_scalars(const StepMetrics& metrics) {
  std::vector<ScalarValue> scalars = {
      {"loss", metrics.loss},
      {"grad_norm", metrics.grad_norm},
      {"learning_rate", metrics.learning_rate},
      {"tps", metrics.tokens_per_second},
      {"skipped_steps", static_cast<double>(metrics.skipped_steps)},
      {"step_ms", metrics.step_ms},
      {"peak_bytes", static_cast<double>(metrics.peak_bytes)},
  };
  for (const auto& [name, count] : metrics.health) {
    scalars.push_back({"health/" + name, static_cast<double>(count)});
  }
  if (metrics.validation_loss) scalars.push_back({"validation_loss", *metrics.validation_loss});
  return scalars;
}

EventFile::EventFile(const EventFileOptions& options)
    : clock_(options.clock ? options.clock : system_clock_seconds) {
  const auto seconds = static_cast<int64_t>(clock_());
  // Two runs of one process within one second would share a name.
  for (int attempt = 0; !file_; ++attempt) {
    const std::filesystem::path path = options.directory / file_name(options, seconds, attempt);
    if (std::filesystem::exists(path)) continue;
    file_.emplace(path, AppendFile::Opening::kExclusive);
  }
  tensorboard::Event version;
  version.set_file_version("brain.Event:2");
  add(version, 0);
  tensorboard::Event start;
  start.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  add(start, options.last_step + 1);
}

void EventFile::add_scalars(int64_t step, std::span<const ScalarValue> values) {
  tensorboard::Event event;
  for (const ScalarValue& scalar : values) {
    auto* value = event.mutable_summary()->add_value();
    value->set_tag(scalar.tag);
    value->set_simple_value(static_cast<float>(scalar.value));
  }
  add(event, step);
}

void EventFile::add_code(std::string_view tag, int64_t step, std::string_view text) {
  tensorboard::Event event;
  auto* value = event.mutable_summary()->add_value();
  value->set_tag(std::string(tag));
  value->mutable_metadata()->mutable_plugin_data()->set_plugin_name("text");
  value->mutable_metadata()->set_data_class(tensorboard::DATA_CLASS_TENSOR);
  value->mutable_tensor()->set_dtype(tensorboard::DT_STRING);
  value->mutable_tensor()->mutable_tensor_shape()->add_dim()->set_size(1);
  value->mutable_tensor()->add_string_val(indented(text));
  add(event, step);
}

void EventFile::add(tensorboard::Event& event, int64_t step) {
  event.set_wall_time(clock_());
  event.set_step(step);
  file_->append(frame_record(event.SerializeAsString()));
}

}  // namespace flashshard::metrics
