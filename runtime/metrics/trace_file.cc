#include "runtime/metrics/trace_file.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <system_error>

#include "runtime/metrics/durable_file.h"

namespace flashshard::metrics {

std::string trace_json(std::span<const TraceEvent> events, int rank, std::string_view host) {
  using nlohmann::json;
  json list = json::array();
  list.push_back({{"name", "process_name"},
                  {"ph", "M"},
                  {"pid", rank},
                  {"args", {{"name", fmt::format("rank {} on {}", rank, host)}}}});
  for (const TraceEvent& event : events) {
    json entry = {{"name", event.name},
                  {"ph", "X"},
                  {"pid", rank},
                  {"tid", 0},
                  {"ts", static_cast<double>(event.begin_ns) / 1e3},
                  {"dur", static_cast<double>(event.end_ns - event.begin_ns) / 1e3}};
    if (!event.detail.empty()) entry["args"] = {{"detail", event.detail}};
    list.push_back(std::move(entry));
  }
  return json{{"traceEvents", std::move(list)}, {"displayTimeUnit", "ms"}}.dump();
}

void write_trace(const std::filesystem::path& path, std::span<const TraceEvent> events, int rank,
                 std::string_view host) {
  std::error_code error;
  std::filesystem::create_directory(path.parent_path(), error);
  if (error) throw file_error("create the folder", path.parent_path(), error.value());
  replace_file(path, trace_json(events, rank, host), Durability::kAtomic);
}

}  // namespace flashshard::metrics
