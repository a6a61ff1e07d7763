#include "runtime/config/schedule_options.h"

namespace flashshard {

Schedule schedule_of(const proto::RunConfig& config) {
  Schedule schedule;
  switch (config.schedule().kind()) {
    case proto::ScheduleKind::CONSTANT:
      schedule.kind = ScheduleKind::kConstant;
      break;
    case proto::ScheduleKind::COSINE:
      schedule.kind = ScheduleKind::kCosine;
      break;
    case proto::ScheduleKind::LINEAR:
      schedule.kind = ScheduleKind::kLinear;
      break;
    case proto::ScheduleKind::WSD:
      schedule.kind = ScheduleKind::kWsd;
      break;
  }
  schedule.peak = config.optimizer().learning_rate();
  schedule.steps = config.train().steps();
  schedule.warmup_steps = config.schedule().warmup_steps();
  schedule.final_fraction = config.schedule().final_fraction();
  schedule.decay_fraction = config.schedule().decay_fraction();
  return schedule;
}

}  // namespace flashshard
