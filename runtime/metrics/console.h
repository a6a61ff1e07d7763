// A rank's two output streams. Lines go through here so that the progress bar always stays on the
// last line.
#pragma once

#include <cstdio>
#include <mutex>
#include <string>
#include <string_view>

#include "runtime/metrics/progress.h"
#include "runtime/metrics/terminal.h"

namespace flashshard::metrics {

/// Safe to use from several threads.
class Console {
 public:
  /// The streams are borrowed. The bar is drawn on `out` where that is a terminal, and nowhere
  /// else.
  explicit Console(std::FILE* out = stdout, std::FILE* error = stderr);
  /// Erases the bar.
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  /// One line or a table on `out`; ends it with a newline where it has none.
  void print(std::string_view text);
  /// The same on `error`.
  void print_error(std::string_view text);

  /// Draws the bar anew; nothing without a terminal.
  void show_progress(const Progress& progress);
  void erase_progress();

 private:
  std::FILE* out_;
  std::FILE* error_;
  Terminal terminal_;
  std::mutex mutex_;
  std::string bar_;  // as it stands on the screen; empty when none does
};

}  // namespace flashshard::metrics
