// Offsets of tensors with known lifetimes: nothing that is live together overlaps, and little is
// lost to the best that any plan can do.
#include "runtime/model/activation_plan.h"

#include <gtest/gtest.h>

#include <random>

#include "kernels/error.h"
#include "planned_tensors.h"

namespace flashshard {
namespace {

PlannedTensor tensor(int64_t bytes, int first_step, int last_step) {
  return {.name = "t", .bytes = bytes, .first_step = first_step, .last_step = last_step};
}

TEST(ActivationPlan, LetsTensorsThatAreNeverLiveTogetherShareMemory) {
  const ActivationPlan plan({tensor(1024, 0, 1), tensor(512, 2, 3), tensor(512, 2, 4)});
  expect_no_overlap(plan);
  EXPECT_EQ(plan.bytes(), 1024);
  EXPECT_EQ(plan.lower_bound(), 1024);
}

TEST(ActivationPlan, KeepsTensorsApartThatMeetInASingleStep) {
  const ActivationPlan plan({tensor(256, 0, 3), tensor(256, 3, 5)});
  expect_no_overlap(plan);
  EXPECT_EQ(plan.bytes(), 512);
}

TEST(ActivationPlan, FillsTheSmallestGapThatHolds) {
  // Two gaps of the first step, of 2048 and of 1024 bytes, wait for what comes in the second.
  const ActivationPlan plan({tensor(8192, 0, 1), tensor(2048, 0, 0), tensor(4096, 0, 1),
                             tensor(1024, 0, 0), tensor(2048, 1, 1), tensor(1024, 1, 1)});
  expect_no_overlap(plan);
  EXPECT_EQ(plan.bytes(), plan.lower_bound());
}

TEST(ActivationPlan, AlignsEveryTensorAndCountsThePadding) {
  const ActivationPlan plan({tensor(1, 0, 0), tensor(257, 0, 0), tensor(0, 0, 0)});
  for (const PlannedTensor& t : plan.tensors()) {
    EXPECT_EQ(t.offset % ActivationPlan::kAlignment, 0);
  }
  EXPECT_EQ(plan.bytes(), 3 * 256);
  EXPECT_EQ(plan.lower_bound(), plan.bytes());
}

TEST(ActivationPlan, OfNothingIsEmpty) {
  EXPECT_EQ(ActivationPlan().bytes(), 0);
  EXPECT_EQ(ActivationPlan(std::vector<PlannedTensor>{}).lower_bound(), 0);
}

TEST(ActivationPlan, NeverOverlapsWhateverTheLifetimes) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 40; ++trial) {
    std::vector<PlannedTensor> tensors;
    for (int i = 0; i < 60; ++i) {
      const auto first = static_cast<int>(random() % 30);
      tensors.push_back(tensor(random() % 5000, first, first + static_cast<int>(random() % 12)));
    }
    const ActivationPlan plan(tensors);
    expect_no_overlap(plan);
    EXPECT_GE(plan.bytes(), plan.lower_bound());
    EXPECT_LE(plan.bytes(), plan.lower_bound() * 5 / 4);
  }
}

TEST(ActivationPlan, RefusesALifetimeThatEndsBeforeItBegins) {
  EXPECT_THROW(ActivationPlan({tensor(1, 3, 2)}), Error);
  EXPECT_THROW(ActivationPlan({tensor(1, -1, 2)}), Error);
  EXPECT_THROW(ActivationPlan({tensor(-1, 0, 2)}), Error);
}

}  // namespace
}  // namespace flashshard
