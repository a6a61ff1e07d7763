// What ranks tell each other once a step, and what all of them make of it.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/numerics/update_args.h"
#include "runtime/losses.h"
#include "runtime/stop_signal.h"

namespace flashshard {

/// What each rank tells the others once a step. Plain bytes: it is gathered as it is.
struct RankReport {
  double data_ms = 0;
  double forward_ms = 0;
  double backward_ms = 0;
  int64_t peak_bytes = 0;
  int64_t stop_cause = 0;
  int64_t save = 0;             // checkpoint::BackgroundSave::Progress
  double save_wait_ms = 0;      // since the last report
  int64_t rejected_groups = 0;  // by the steps before this one
  UpdateHealth health;          // of the last update before this step
};

/// A step's report of all ranks in one.
struct StepReport {
  double loss = 0;                                      // nats per token
  double data_ms = 0, forward_ms = 0, backward_ms = 0;  // of the slowest rank in each
  int64_t slowest_rank = 0;
  int64_t peak_bytes = 0;
  int64_t rejected_groups = 0;
  UpdateHealth health;
  StopCause stop = StopCause::kNone;
  bool save_at_rest = true, save_failed = false;  // on all ranks, on some
  double save_wait_ms = 0;
};

/// The same on every rank. `ranks`: by rank.
StepReport combine(const LossResult& loss, std::span<const RankReport> ranks);

}  // namespace flashshard
