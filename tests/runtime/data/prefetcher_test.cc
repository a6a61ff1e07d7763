// The prefetcher delivers micro-batches in order, passes errors on in their place, and can be
// stopped at any moment.
#include "runtime/data/prefetcher.h"

#include <signal.h>

#include <atomic>
#include <chrono>
#include <future>

#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

using testing::Each;
using testing::StartsWith;

Prefetcher::Options numbered(std::atomic<int64_t>* calls = nullptr) {
  return {.sequences = 2,
          .sequence_length = 3,
          .schedule = [](int64_t k) { return 10 * k; },
          .fill =
              [calls](int64_t first, int64_t, const SequenceBuffers& buffers) {
                std::ranges::fill(buffers.inputs, static_cast<int32_t>(first));
                std::ranges::fill(buffers.targets, static_cast<int32_t>(first + 1));
                std::ranges::fill(buffers.document_starts, static_cast<int32_t>(first + 2));
                if (calls != nullptr) ++*calls;
              }};
}

TEST(Prefetcher, DeliversMicroBatchesInOrderAndEachStaysUntilTheNextCall) {
  Prefetcher prefetcher(numbered());
  for (int32_t k = 0; k < 2000; ++k) {
    const MicroBatch& batch = prefetcher.next();
    EXPECT_EQ(batch.first_sequence, 10 * k);
    EXPECT_EQ(batch.sequences, 2);
    if (k % 100 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
    ASSERT_EQ(batch.inputs, std::vector<int32_t>(6, 10 * k));
    ASSERT_EQ(batch.targets, std::vector<int32_t>(6, 10 * k + 1));
  }
}

TEST(Prefetcher, DeliversStartsOfDocumentsWhereTheyAreWanted) {
  Prefetcher::Options options = numbered();
  EXPECT_THAT(Prefetcher(options).next().document_starts, testing::IsEmpty());
  options.document_starts = true;
  Prefetcher prefetcher(options);
  for (int32_t k = 0; k < 4; ++k) {
    EXPECT_EQ(prefetcher.next().document_starts, std::vector<int32_t>(6, 10 * k + 2));
  }
}

TEST(Prefetcher, ReadsAheadButOnlyAsFarAsItsBuffersReach) {
  std::atomic<int64_t> calls = 0;
  Prefetcher prefetcher(numbered(&calls));
  while (calls < 2) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(calls, 2);
  prefetcher.next();  // held now; its buffer is not free
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(calls, 2);
  prefetcher.next();
  while (calls < 3) std::this_thread::yield();
}

TEST(Prefetcher, RethrowsAnErrorInItsPlaceAndAgain) {
  Prefetcher::Options options = numbered();
  options.fill = [fill = options.fill](int64_t first, int64_t count,
                                       const SequenceBuffers& buffers) {
    if (first == 30) throw Error(ExitCode::kBadData, "broken text", "file");
    fill(first, count, buffers);
  };
  Prefetcher prefetcher(options);
  for (int32_t k = 0; k < 3; ++k) EXPECT_THAT(prefetcher.next().inputs, Each(10 * k));
  EXPECT_THAT(error_of([&] { prefetcher.next(); }), StartsWith("3: broken text (file)"));
  EXPECT_THAT(error_of([&] { prefetcher.next(); }), StartsWith("3: broken text (file)"));
}

TEST(Prefetcher, PassesOnAnErrorOfTheSchedule) {
  Prefetcher::Options options = numbered();
  options.schedule = [](int64_t) -> int64_t { throw std::runtime_error("no such micro-batch"); };
  Prefetcher prefetcher(options);
  EXPECT_THROW(prefetcher.next(), std::runtime_error);
}

TEST(Prefetcher, StopsAtAnyMoment) {
  for (int round = 0; round < 300; ++round) {
    std::atomic<int64_t> calls = 0;
    {
      Prefetcher prefetcher(numbered(&calls));
      for (int k = 0; k < round % 5; ++k) prefetcher.next();
      if (round % 7 == 0) std::this_thread::yield();
    }
    const int64_t after_stop = calls;
    std::this_thread::yield();
    EXPECT_EQ(calls, after_stop);
  }
}

TEST(Prefetcher, StopsWhileAnErrorWaitsUnread) {
  Prefetcher::Options options = numbered();
  options.fill = [](int64_t, int64_t, const SequenceBuffers&) {
    throw std::runtime_error("never seen");
  };
  for (int round = 0; round < 50; ++round) Prefetcher prefetcher(options);
}

TEST(Prefetcher, CountsTheTimeThatItsCallerWaited) {
  Prefetcher::Options options = numbered();
  options.schedule = [](int64_t k) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return k;
  };
  Prefetcher prefetcher(options);
  EXPECT_EQ(prefetcher.take_wait_ms(), 0);
  const auto begin = std::chrono::steady_clock::now();
  for (int k = 0; k < 10; ++k) prefetcher.next();
  const std::chrono::duration<double, std::milli> elapsed =
      std::chrono::steady_clock::now() - begin;
  const double waited = prefetcher.take_wait_ms();
  EXPECT_GT(waited, 0);
  EXPECT_LE(waited, elapsed.count());
  EXPECT_EQ(prefetcher.take_wait_ms(), 0);
}

TEST(Prefetcher, LeavesSignalsToTheOtherThreads) {
  std::promise<bool> blocked;
  Prefetcher::Options options = numbered();
  options.schedule = [&](int64_t k) {
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    if (k == 0) blocked.set_value(sigismember(&mask, SIGUSR1) == 1);
    return k;
  };
  Prefetcher prefetcher(options);
  EXPECT_TRUE(blocked.get_future().get());
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  EXPECT_EQ(sigismember(&mask, SIGUSR1), 0);
}

TEST(Prefetcher, RefusesToStartWithoutASource) {
  Prefetcher::Options options = numbered();
  options.fill = nullptr;
  EXPECT_THAT(error_of([&] { Prefetcher prefetcher(options); }), StartsWith("1: "));
}

}  // namespace
}  // namespace flashshard::data
