// proc(5) prints "VmRSS:	    1234 kB" and means KiB.
#include "runtime/metrics/process_memory.h"

#include <algorithm>
#include <charconv>
#include <string>

#include "kernels/error.h"
#include "runtime/metrics/durable_file.h"

namespace flashshard::metrics {
namespace {

int64_t required_field(std::string_view text, std::string_view name, const char* path) {
  const int64_t bytes = parse_kilobyte_field(text, name);
  if (bytes < 0) {
    throw Error(ExitCode::kInternal, "the kernel does not tell " + std::string(name), path);
  }
  return bytes;
}

}  // namespace

int64_t parse_kilobyte_field(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (!line.starts_with(name) || !line.substr(name.size()).starts_with(':')) continue;
    line.remove_prefix(name.size() + 1);
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    int64_t kilobytes = -1;
    const auto [rest, failure] = std::from_chars(line.data(), line.data() + line.size(), kilobytes);
    return failure == std::errc() && kilobytes >= 0 ? kilobytes * 1024 : -1;
  }
  return -1;
}

ProcessMemory read_process_memory() {
  constexpr const char* kPath = "/proc/self/status";
  const std::string text = read_file(kPath);
  return {required_field(text, "VmRSS", kPath), required_field(text, "VmHWM", kPath)};
}

int64_t read_system_memory() {
  constexpr const char* kPath = "/proc/meminfo";
  return required_field(read_file(kPath), "MemTotal", kPath);
}

}  // namespace flashshard::metrics
