#include "optim/schedule.h"

#include <gtest/gtest.h>

namespace flashshard {
namespace {

Schedule schedule(ScheduleKind kind) {
  Schedule s;
  s.kind = kind;
  s.peak = 2e-3;
  s.steps = 100;
  s.warmup_steps = 10;
  s.final_fraction = 0.1;
  s.decay_fraction = 0.2;
  return s;
}

class EverySchedule : public testing::TestWithParam<ScheduleKind> {};

TEST_P(EverySchedule, WarmsUpLinearlyToThePeak) {
  const Schedule s = schedule(GetParam());
  for (int step = 0; step < 10; ++step) {
    EXPECT_DOUBLE_EQ(s.learning_rate(step), 2e-3 * (step + 1) / 10);
  }
}

TEST_P(EverySchedule, NeverRisesAfterWarmUpNorFallsBelowItsFloor) {
  const Schedule s = schedule(GetParam());
  for (int step = 10; step < 100; ++step) {
    EXPECT_LE(s.learning_rate(step), s.learning_rate(step - 1));
    EXPECT_GE(s.learning_rate(step), 2e-4 * (1 - 1e-12));
  }
}

TEST_P(EverySchedule, WorksForOneStepAndWithoutWarmUp) {
  Schedule s = schedule(GetParam());
  s.steps = 1;
  s.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(s.learning_rate(0), 2e-3);
}

INSTANTIATE_TEST_SUITE_P(Kinds, EverySchedule,
                         testing::Values(ScheduleKind::kConstant, ScheduleKind::kCosine,
                                         ScheduleKind::kLinear, ScheduleKind::kWsd));

TEST(Schedule, EndsAtTheFinalFractionOnTheLastStep) {
  EXPECT_DOUBLE_EQ(schedule(ScheduleKind::kConstant).learning_rate(99), 2e-3);
  EXPECT_NEAR(schedule(ScheduleKind::kCosine).learning_rate(99), 2e-4, 1e-15);
  EXPECT_NEAR(schedule(ScheduleKind::kLinear).learning_rate(99), 2e-4, 1e-15);
  EXPECT_NEAR(schedule(ScheduleKind::kWsd).learning_rate(99), 2e-4, 1e-15);
}

TEST(Schedule, WsdIsStableUntilItsDecay) {
  const Schedule s = schedule(ScheduleKind::kWsd);
  for (int step = 10; step <= 80; ++step) EXPECT_DOUBLE_EQ(s.learning_rate(step), 2e-3);
  EXPECT_LT(s.learning_rate(81), 2e-3);
}

TEST(Schedule, CosineIsHalfWayInTheMiddle) {
  Schedule s = schedule(ScheduleKind::kCosine);
  s.warmup_steps = 0;
  s.steps = 101;
  EXPECT_NEAR(s.learning_rate(50), (2e-3 + 2e-4) / 2, 1e-12);
}

}  // namespace
}  // namespace flashshard
