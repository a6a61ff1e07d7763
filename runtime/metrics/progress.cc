// Heavy and light lines where the locale has them, '=' and '-' elsewhere; green for what is done
// where colours are wanted.
#include "runtime/metrics/progress.h"

#include <fmt/core.h>

#include <algorithm>

#include "runtime/metrics/number_format.h"

namespace flashshard::metrics {
namespace {

constexpr int kSmallestBar = 8;
constexpr int kLargestBar = 40;

double done_fraction(const Progress& progress) {
  if (progress.total_steps <= 0) return 1.0;
  return std::clamp(static_cast<double>(progress.step) / static_cast<double>(progress.total_steps),
                    0.0, 1.0);
}

void repeat(std::string& text, const char* piece, int times) {
  for (int i = 0; i < times; ++i) text += piece;
}

std::string draw_bar(double fraction, int cells, const ProgressStyle& style) {
  const int done = static_cast<int>(fraction * cells);
  std::string bar = style.unicode ? "" : "[";
  if (style.colour) bar += "\033[32m";
  repeat(bar, style.unicode ? "━" : "=", done);
  if (style.colour) bar += "\033[0m\033[2m";
  repeat(bar, style.unicode ? "─" : "-", cells - done);
  if (style.colour) bar += "\033[0m";
  if (!style.unicode) bar += "]";
  return bar;
}

}  // namespace

double seconds_left(const Progress& progress) {
  const int64_t done_here = progress.step - progress.first_step;
  if (done_here <= 0) return -1.0;
  const double pace = progress.elapsed_seconds / static_cast<double>(done_here);
  return pace * static_cast<double>(std::max<int64_t>(0, progress.total_steps - progress.step));
}

std::string render_progress(const Progress& progress, const ProgressStyle& style) {
  constexpr int kTooNarrow = 10;
  if (style.width < kTooNarrow) return "";
  const double fraction = done_fraction(progress);
  const std::string head =
      fmt::format("step {}/{}  {:3.0f}%", progress.step, progress.total_steps, 100.0 * fraction);
  const std::string tail = fmt::format("{} left", format_duration(seconds_left(progress)));
  const int columns = style.width - 1;
  const int brackets = style.unicode ? 0 : 2;
  const int taken = static_cast<int>(head.size() + tail.size()) + 4 + brackets;
  const int cells = std::min(columns - taken, kLargestBar);
  if (cells >= kSmallestBar) return head + "  " + draw_bar(fraction, cells, style) + "  " + tail;
  return (head + "  " + tail).substr(0, static_cast<size_t>(columns));
}

}  // namespace flashshard::metrics
