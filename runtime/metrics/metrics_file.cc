// JSON has no word for NaN or infinity, so these become strings that float() of Python and stod of
// C++ read.
#include "runtime/metrics/metrics_file.h"

#include <fmt/core.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

namespace flashshard::metrics {
namespace {

using nlohmann::ordered_json;

ordered_json number(double value) {
  if (std::isfinite(value)) return value;
  if (std::isnan(value)) return "nan";  // the sign of a NaN says nothing
  return value > 0 ? "inf" : "-inf";
}

/// The step of a whole line; nothing for a line that is not an object with one.
std::optional<int64_t> step_of(std::string_view line) {
  const auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return std::nullopt;
  const auto step = object.find("step");
  if (step == object.end() || !step->is_number_integer()) return std::nullopt;
  return step->get<int64_t>();
}

/// Rewrites the file at `path` with the whole lines of steps up to `last_step`, if that changes it.
MetricsFile::Opened keep_steps(const std::filesystem::path& path, int64_t last_step) {
  MetricsFile::Opened opened;
  if (!std::filesystem::exists(path)) return opened;
  const std::string text = read_file(path);
  std::string kept;
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    const std::optional<int64_t> step = step_of(line);
    // A line without its end was torn, even where what is left happens to parse.
    if (end != std::string_view::npos && step && *step <= last_step) {
      kept.append(line).append("\n");
      ++opened.kept_lines;
    } else {
      ++opened.dropped_lines;
    }
  }
  if (kept.size() != text.size()) replace_file(path, kept, Durability::kSynced);
  return opened;
}

}  // namespace

std::string to_json_line(const StepMetrics& metrics) {
  ordered_json object = {
      {"step", metrics.step},
      {"loss", number(metrics.loss)},
      {"grad_norm", number(metrics.grad_norm)},
      {"clip_coefficient", number(metrics.clip_coefficient)},
      {"learning_rate", number(metrics.learning_rate)},
      {"tokens", metrics.tokens},
      {"tokens_per_second", number(metrics.tokens_per_second)},
      {"step_ms", number(metrics.step_ms)},
      {"data_ms", number(metrics.data_ms)},
      {"forward_ms", number(metrics.forward_ms)},
      {"backward_ms", number(metrics.backward_ms)},
      {"reduce_ms", number(metrics.reduce_ms)},
      {"update_ms", number(metrics.update_ms)},
      {"gather_ms", number(metrics.gather_ms)},
      {"exposed_comm_ms", number(metrics.exposed_comm_ms)},
      {"slowest_rank", metrics.slowest_rank},
      {"peak_bytes", metrics.peak_bytes},
      {"save_wait_ms", number(metrics.save_wait_ms)},
      {"skipped_steps", metrics.skipped_steps},
      {"nonfinite", metrics.nonfinite},
      {"health", metrics.health},
  };
  if (metrics.save_background_ms)
    object["save_background_ms"] = number(*metrics.save_background_ms);
  if (metrics.validation_loss) object["validation_loss"] = number(*metrics.validation_loss);
  return object.dump();
}

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t last_step)
    : opened_(keep_steps(path, last_step)), file_(path) {}

void MetricsFile::append(const StepMetrics& metrics) { file_.append(to_json_line(metrics) + "\n"); }

}  // namespace flashshard::metrics
