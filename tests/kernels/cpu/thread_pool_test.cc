// The thread pool: every task once, static shares, exceptions, idleness.
#include "kernels/cpu/thread_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

namespace flashshard::cpu {
namespace {

class Pool : public testing::TestWithParam<int> {};

TEST_P(Pool, RunsEveryTaskOnceOnItsParticipant) {
  ThreadPool pool(GetParam());
  for (const int64_t tasks : {0, 1, 2, 3, 17, 1000}) {
    std::vector<int> participant(static_cast<size_t>(tasks), -1);
    pool.run(tasks, [&](int64_t task, int p) {
      EXPECT_EQ(participant[static_cast<size_t>(task)], -1);
      participant[static_cast<size_t>(task)] = p;
    });
    EXPECT_TRUE(std::is_sorted(participant.begin(), participant.end()));
    std::vector<int> again(participant.size());
    pool.run(tasks, [&](int64_t task, int p) { again[static_cast<size_t>(task)] = p; });
    EXPECT_EQ(again, participant) << "shares depend on timing";
    EXPECT_THAT(participant,
                testing::Each(testing::AllOf(testing::Ge(0), testing::Lt(GetParam()))));
  }
}

TEST_P(Pool, RangesPartitionTheCount) {
  ThreadPool pool(GetParam());
  for (const int64_t count : {0, 1, 2, 5, 1001}) {
    std::vector<int> seen(static_cast<size_t>(count));
    pool.run_ranges(count, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) ++seen[static_cast<size_t>(i)];
    });
    EXPECT_THAT(seen, testing::Each(1));
  }
}

TEST_P(Pool, TheCallerIsAParticipant) {
  ThreadPool pool(GetParam());
  std::vector<std::thread::id> threads(static_cast<size_t>(GetParam()));
  pool.run(GetParam(),
           [&](int64_t, int p) { threads[static_cast<size_t>(p)] = std::this_thread::get_id(); });
  EXPECT_EQ(threads.front(), std::this_thread::get_id());
  for (size_t p = 1; p < threads.size(); ++p) EXPECT_NE(threads[p], threads.front());
}

TEST_P(Pool, ThrowsTheFirstParticipantsExceptionAndStaysUsable) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 3; ++round) {
    try {
      pool.run(40, [&](int64_t task, int) {
        if (task % 10 == 9) throw std::runtime_error(std::to_string(task));
      });
      FAIL() << "nothing was thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "9");
    }
    std::atomic<int> done = 0;
    pool.run(8, [&](int64_t, int) { ++done; });
    EXPECT_EQ(done, 8);
  }
}

TEST_P(Pool, WakesUpAfterABlockingPause) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::atomic<int64_t> sum = 0;
    pool.run(10, [&](int64_t task, int) { sum += task; });
    EXPECT_EQ(sum, 45);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, Pool, testing::Values(1, 2, 4));

}  // namespace
}  // namespace flashshard::cpu
