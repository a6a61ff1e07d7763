// Thousands are grouped by hand: fmt would ask the process's locale.
#include "runtime/metrics/number_format.h"

#include <fmt/core.h>

#include <array>
#include <cmath>

namespace flashshard::metrics {
namespace {

/// Puts a comma before every third digit of the integer part of `text`.
std::string group(std::string text) {
  size_t end = text.find('.');
  if (end == std::string::npos) end = text.size();
  const size_t first = text.starts_with('-') ? 1 : 0;
  while (end > first + 3) {
    end -= 3;
    text.insert(end, 1, ',');
  }
  return text;
}

}  // namespace

std::string with_thousands(int64_t value) { return group(fmt::format("{}", value)); }

std::string with_thousands(double value, int digits) {
  if (!std::isfinite(value)) return fmt::format("{}", value);
  return group(fmt::format("{:.{}f}", value, digits));
}

std::string format_bytes(int64_t bytes) {
  constexpr std::array<const char*, 7> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (std::abs(value) >= 1024.0 && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  if (unit == 0) return fmt::format("{} B", bytes);
  return fmt::format("{:.2f} {}", value, kUnits[unit]);
}

std::string format_duration(double seconds) {
  constexpr double kLongest = 1e12;  // 31,000 years: past it the integer below would overflow
  if (!std::isfinite(seconds) || seconds < 0 || seconds > kLongest) return "-";
  const int64_t total = std::llround(seconds);
  const int64_t hours = total / 3600;
  const int64_t minutes = total / 60 % 60;
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, total % 60);
  return fmt::format("{}:{:02}", minutes, total % 60);
}

}  // namespace flashshard::metrics
