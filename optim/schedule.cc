#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace flashshard {

double Schedule::learning_rate(int64_t step) const {
  if (step < warmup_steps) {
    return peak * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  }
  // How far the decay has gone at this step: 0 where it begins, 1 at the last step.
  const auto decayed = [&](int64_t begin) {
    const int64_t last = std::max(steps - 1, begin + 1);
    return std::clamp(static_cast<double>(step - begin) / static_cast<double>(last - begin), 0.0,
                      1.0);
  };
  const double floor = peak * final_fraction;
  // The last step of warm-up is where the decay begins, so that the peak is used once.
  const int64_t after_warmup = std::max<int64_t>(warmup_steps - 1, 0);
  switch (kind) {
    case ScheduleKind::kConstant:
      return peak;
    case ScheduleKind::kCosine:
      return floor +
             (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * decayed(after_warmup)));
    case ScheduleKind::kLinear:
      return peak + (floor - peak) * decayed(after_warmup);
    case ScheduleKind::kWsd: {
      const auto decay_steps =
          static_cast<int64_t>(std::llround(decay_fraction * static_cast<double>(steps)));
      const int64_t begin = std::max(steps - decay_steps, after_warmup);
      return peak + (floor - peak) * decayed(begin);
    }
  }
  return peak;
}

}  // namespace flashshard
