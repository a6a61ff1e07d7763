// The progress bar's text.
#pragma once

#include <cstdint>
#include <string>

namespace flashshard::metrics {

struct Progress {
  int64_t step = 0;            // steps done
  int64_t total_steps = 0;     // steps of the whole run
  int64_t first_step = 0;      // steps that were done before this process began (a resumed run)
  double elapsed_seconds = 0;  // since this process began to train
};

/// Seconds until the last step at the pace so far; negative while no pace is known.
double seconds_left(const Progress& progress);

struct ProgressStyle {
  int width = 80;  // columns; the text takes one less, so that no terminal wraps it
  bool colour = false;
  bool unicode = false;
};

/// "step 84/200  42% [========----------]  0:17 left"; a narrow terminal loses the bar first. Empty
/// below 10 columns.
std::string render_progress(const Progress& progress, const ProgressStyle& style);

}  // namespace flashshard::metrics
