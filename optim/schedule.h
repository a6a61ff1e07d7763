// Learning rate over the steps of a run: warm-up, then constant, cosine, linear or
// warm-up-stable-decay (WSD).
#pragma once

#include <cstdint>

namespace flashshard {

enum class ScheduleKind : uint8_t { kConstant, kCosine, kLinear, kWsd };

struct Schedule {
  ScheduleKind kind = ScheduleKind::kCosine;
  double peak = 1e-3;
  int64_t steps = 1;
  int64_t warmup_steps = 0;
  double final_fraction = 0.1;  // of the peak, reached at the last step
  double decay_fraction = 0.2;  // WSD: share of all steps in the linear decay at the end

  /// Learning rate of step `step`, 0 <= step < steps. Warm-up is linear and its last step has the
  /// peak.
  double learning_rate(int64_t step) const;
};

}  // namespace flashshard
