// The measurements of `bench optimizer` as a table and as JSON.
#include <fmt/format.h>

#include <fstream>
#include <string_view>
#include <thread>

#include "kernels/cpu/update_loops.h"
#include "launch/bench/optimizer_bench.h"
#include "runtime/metrics/host_name.h"
#include "runtime/metrics/tables.h"

namespace flashshard::launch {
namespace {

/// As the kernel names it; "unknown" where it does not.
std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::string compiler() {
#ifdef __clang__
  return __VERSION__;
#else
  return fmt::format("g++ {}", __VERSION__);
#endif
}

std::string ratio(double value) { return value > 0 ? fmt::format("{:.2f}", value) : "-"; }

}  // namespace

std::string to_text(const OptimizerBenchOptions& options,
                    const std::vector<OptimizerBenchRow>& rows) {
  using enum metrics::Alignment;
  metrics::TextTable table(
      fmt::format("{} parameters, {} thread(s), median of {} rounds, {}", options.elements,
                  options.threads, options.repeat, processor_name()),
      {{"rule", kLeft},
       {"format", kLeft},
       {"master", kRight},
       {"instructions", kLeft},
       {"loop", kLeft},
       {"10^9 params/s", kRight},
       {"GB/s", kRight},
       {"time / copy", kRight},
       {"x plain", kRight},
       {"x plain V1", kRight}});
  for (const OptimizerBenchRow& row : rows) {
    table.add_row({row.rule, row.format, fmt::format("{}", row.master_bits), row.instruction_set,
                   row.implementation,
                   fmt::format("{:.3f}", 1e-9 * row.parameters_per_second(options.elements)),
                   fmt::format("{:.2f}", 1e-9 * row.bytes_per_second(options.elements)),
                   fmt::format("{:.2f}", row.times_the_copy()), ratio(row.over_plain_loop),
                   ratio(row.over_plain_loop_of_v1)});
  }
  return table.render();
}

nlohmann::ordered_json to_json(const OptimizerBenchOptions& options,
                               const std::vector<OptimizerBenchRow>& rows) {
  using nlohmann::ordered_json;
  ordered_json sets = ordered_json::array();
  for (const auto* loops : cpu::available_update_loops()) sets.push_back(std::string(loops->name));
  ordered_json object = {
      {"benchmark", "optimizer"},
      {"version", FLASHSHARD_VERSION},
      {"compiler", compiler()},
      {"machine",
       {{"host", metrics::host_name()},
        {"processor", processor_name()},
        {"cores", std::thread::hardware_concurrency()},
        {"instruction_sets", sets}}},
      {"elements", options.elements},
      {"threads", options.threads},
      {"rounds", options.repeat},
      {"rounding", options.rounding == Rounding::kStochastic ? "STOCHASTIC" : "NEAREST"},
      {"clock", options.threads == 1 ? "processor" : "wall"},
      {"rows", ordered_json::array()}};
  const auto known = [](double value) { return value > 0 ? ordered_json(value) : ordered_json(); };
  for (const OptimizerBenchRow& row : rows) {
    object["rows"].push_back({{"rule", row.rule},
                              {"format", row.format},
                              {"master_weight_bits", row.master_bits},
                              {"instruction_set", row.instruction_set},
                              {"implementation", row.implementation},
                              {"bytes_per_parameter", row.bytes_per_parameter},
                              {"seconds", row.seconds},
                              {"seconds_shortest", row.shortest},
                              {"seconds_longest", row.longest},
                              {"params_per_second", row.parameters_per_second(options.elements)},
                              {"bytes_per_second", row.bytes_per_second(options.elements)},
                              {"copy_seconds", row.copy_seconds},
                              {"time_over_copy", row.times_the_copy()},
                              {"over_plain_loop", known(row.over_plain_loop)},
                              {"over_plain_loop_of_v1", known(row.over_plain_loop_of_v1)}});
    if (row.implementation == "with_health") {
      object["rows"].back()["sampled_groups"] = row.sampled_groups;
    }
  }
  return object;
}

}  // namespace flashshard::launch
