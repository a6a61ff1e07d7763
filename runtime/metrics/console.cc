// The bar is erased by "carriage return, clear to the end of the line" (ECMA-48 EL) and drawn again
// in the same write.
#include "runtime/metrics/console.h"

namespace flashshard::metrics {
namespace {

constexpr std::string_view kErase = "\r\033[K";

void write(std::FILE* stream, std::string_view text) {
  // A reader that went away (a closed pager) must not end the run.
  static_cast<void>(std::fwrite(text.data(), 1, text.size(), stream));
  static_cast<void>(std::fflush(stream));
}

std::string as_lines(std::string_view text) {
  std::string lines(text);
  if (!lines.ends_with('\n')) lines += '\n';
  return lines;
}

}  // namespace

Console::Console(std::FILE* out, std::FILE* error)
    : out_(out), error_(error), terminal_(Terminal::behind(::fileno(out))) {}

Console::~Console() { erase_progress(); }

void Console::print(std::string_view text) {
  const std::lock_guard lock(mutex_);
  std::string output(bar_.empty() ? std::string_view() : kErase);
  output += as_lines(text);
  write(out_, output + bar_);
}

void Console::print_error(std::string_view text) {
  const std::lock_guard lock(mutex_);
  if (!bar_.empty()) write(out_, kErase);
  write(error_, as_lines(text));
  if (!bar_.empty()) write(out_, bar_);
}

void Console::show_progress(const Progress& progress) {
  const std::lock_guard lock(mutex_);
  if (!terminal_.can_redraw()) return;
  const std::string bar =
      render_progress(progress, {terminal_.width(), terminal_.colour(), terminal_.unicode()});
  if (bar == bar_) return;
  write(out_, std::string(kErase) + bar);
  bar_ = bar;
}

void Console::erase_progress() {
  const std::lock_guard lock(mutex_);
  if (!bar_.empty()) write(out_, kErase);
  bar_.clear();
}

}  // namespace flashshard::metrics
