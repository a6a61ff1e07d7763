// Micro-batches are dealt to ranks in turn, round by round; what cannot be dealt is refused.
#include "runtime/data/micro_batch_schedule.h"

#include <set>

#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class Ranks : public testing::TestWithParam<int> {};

TEST_P(Ranks, ShareEveryStepWithoutGapOrOverlap) {
  constexpr int64_t kGlobalBatch = 21;
  constexpr int64_t kMicroBatch = 3;
  constexpr int64_t kFirst = 1000;
  constexpr int64_t kSteps = 3;
  std::set<int64_t> starts;
  for (int rank = 0; rank < GetParam(); ++rank) {
    const MicroBatchSchedule schedule({.global_batch = kGlobalBatch,
                                       .micro_batch = kMicroBatch,
                                       .rank = rank,
                                       .world_size = GetParam(),
                                       .first_sequence = kFirst});
    for (int64_t k = 0; k < kSteps * schedule.micro_batches_per_step(); ++k) {
      EXPECT_TRUE(starts.insert(schedule(k)).second) << schedule(k);
      EXPECT_EQ((schedule(k) - kFirst) / kGlobalBatch, k / schedule.micro_batches_per_step());
    }
  }
  EXPECT_EQ(starts.size(), 21u);
  EXPECT_EQ(*starts.begin(), kFirst);
  EXPECT_EQ(*starts.rbegin(), kFirst + kSteps * kGlobalBatch - kMicroBatch);
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, Ranks, testing::Range(1, 8));

TEST(MicroBatchSchedule, RoundsGoOverTheRanksInOrder) {
  const MicroBatchSchedule schedule(
      {.global_batch = 20, .micro_batch = 2, .rank = 1, .world_size = 4, .first_sequence = 0});
  EXPECT_EQ(schedule.micro_batches_per_step(), 3);  // micro-batches 1, 5 and 9 of 10
  EXPECT_EQ(schedule(0), 2);
  EXPECT_EQ(schedule(1), 10);
  EXPECT_EQ(schedule(2), 18);
  EXPECT_EQ(schedule(3), 22);
}

TEST(MicroBatchSchedule, RefusesBatchesThatDoNotDivideOrDoNotReach) {
  const auto error = [](MicroBatchSchedule::Options options) {
    return error_of([&] { MicroBatchSchedule{options}; });
  };
  EXPECT_THAT(error({.global_batch = 10, .micro_batch = 4}),
              StartsWith("2: global batch 10 is no multiple of micro-batch 4"));
  EXPECT_THAT(error({.global_batch = 8, .micro_batch = 4, .rank = 0, .world_size = 3}),
              HasSubstr("2 micro-batches, too few for 3 ranks"));
  EXPECT_THAT(error({.global_batch = 8, .micro_batch = 0}), StartsWith("2: "));
  EXPECT_THAT(error({.global_batch = 8, .micro_batch = 4, .rank = 2, .world_size = 2}),
              StartsWith("2: "));
  EXPECT_THAT(error({.global_batch = 8, .micro_batch = 4, .first_sequence = -1}),
              StartsWith("2: "));
}

}  // namespace
}  // namespace flashshard::data
