// A step's micro-batches on any number of ranks: who has which, and losses that add up to the same
// bits.
#include "runtime/losses.h"

#include <gtest/gtest.h>

#include <vector>

#include "runtime/gradient_pass.h"
#include "tests/optim/ranks.h"

namespace flashshard {
namespace {

/// Losses of very different size: another order gives other bits.
LossResult loss_of(int64_t micro_batch) {
  constexpr double kLosses[] = {1e16, 3.25, -1e16, 7.5, 1e-3, 2e15, -2e15, 0.125, 11, 1e8, -1e8};
  return {kLosses[micro_batch % 11], micro_batch + 1};
}

class MicroBatches : public testing::TestWithParam<int> {};

TEST_P(MicroBatches, HaveTheSameLossOnAnyNumberOfRanks) {
  const int world_size = GetParam();
  constexpr int64_t kCount = 11;
  LossResult expected;
  for (int64_t m = 0; m < kCount; ++m) {
    expected.loss_sum += loss_of(m).loss_sum;
    expected.token_count += loss_of(m).token_count;
  }
  test::run_ranks(world_size, [&](Communicator& communicator) {
    const StepShape shape{kCount, world_size, communicator.rank()};
    std::vector<LossResult> own;
    for (int64_t k = 0; k < shape.own(); ++k) own.push_back(loss_of(k * world_size + shape.rank));
    const LossResult sum = sum_in_order(communicator, "the losses", own, shape.rounds());
    EXPECT_EQ(sum.loss_sum, expected.loss_sum);
    EXPECT_EQ(sum.token_count, expected.token_count);
  });
}

TEST_P(MicroBatches, AreEachOnOneRankInOneRound) {
  const int world_size = GetParam();
  for (int64_t count = world_size; count < 3 * world_size + 2; ++count) {
    int64_t in_rounds = 0, on_ranks = 0;
    const StepShape any{count, world_size, 0};
    for (int64_t k = 0; k < any.rounds(); ++k) in_rounds += any.contributors(k);
    EXPECT_EQ(any.contributors(any.rounds()), 0);
    for (int r = 0; r < world_size; ++r) {
      const StepShape shape{count, world_size, r};
      on_ranks += shape.own();
      EXPECT_EQ(shape.own() == shape.rounds(), r < shape.contributors(shape.rounds() - 1));
    }
    EXPECT_EQ(in_rounds, count);
    EXPECT_EQ(on_ranks, count);
  }
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, MicroBatches, testing::Values(1, 2, 3, 4, 8));

}  // namespace
}  // namespace flashshard
