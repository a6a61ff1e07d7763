// A slower link: nothing arrives before its time, everything arrives as it was, errors pass.
#include "comm/delay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <limits>
#include <thread>

#include "comm/threads.h"
#include "tests/comm/verb_checks.h"

namespace flashshard::test {

namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

void on_delayed_ranks(int world_size, const LinkOptions& link,
                      const std::function<void(Communicator&)>& body) {
  std::vector<std::thread> threads;
  for (auto& communicator : make_thread_communicators(world_size)) {
    threads.emplace_back([&body, link, inner = std::move(communicator)]() mutable {
      const auto rank = make_delayed_communicator(std::move(inner), link);
      rank->set_deadline(20s);
      body(*rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

class DelayedRanks : public testing::TestWithParam<VerbCheck> {};

TEST_P(DelayedRanks, DoWhatTheTransportDoes) {
  on_delayed_ranks(3, {.latency = 10us, .bytes_per_second = 1e9}, GetParam().run);
}

INSTANTIATE_TEST_SUITE_P(All, DelayedRanks, testing::ValuesIn(all_checks()),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(DelayedPartsOfASplit, ShareTheirLinkWithTheWhole) {
  on_delayed_ranks(2, {.bytes_per_second = 1e4}, [](Communicator& comm) {
    const auto part = comm.split(0);
    std::vector<std::byte> buffer(300);
    const auto start = Clock::now();
    Pending all = comm.broadcast(buffer, 0);  // 30 ms each, one behind the other
    std::vector<std::byte> other(300);
    part->broadcast(other, 0).wait("the broadcast of the part");
    EXPECT_GE(Clock::now() - start, 60ms);
    all.wait("the broadcast of all");
  });
}

class DelayedVerb : public testing::TestWithParam<Verb> {};

TEST_P(DelayedVerb, IsNotCompleteBeforeTheLatency) {
  on_delayed_ranks(2, {.latency = 30ms}, [](Communicator& comm) {
    AnyCall call(comm, GetParam(), 1);
    const auto start = Clock::now();
    call.start().wait("the call");
    EXPECT_GE(Clock::now() - start, 30ms);
  });
}

TEST_P(DelayedVerb, TestsAsIncompleteUntilItsTime) {
  on_delayed_ranks(2, {.latency = 30ms}, [](Communicator& comm) {
    AnyCall call(comm, GetParam(), 1);
    const auto start = Clock::now();
    Pending pending = call.start();
    while (!pending.test()) std::this_thread::sleep_for(1ms);
    EXPECT_GE(Clock::now() - start, 30ms);
  });
}

INSTANTIATE_TEST_SUITE_P(All, DelayedVerb, testing::ValuesIn(kAllVerbs),
                         [](const auto& instance) { return std::string(name_of(instance.param)); });

constexpr size_t kBytes = 10000;

/// Every rank has kBytes for every other.
Pending gather(Communicator& comm, std::vector<std::byte>& buffer) {
  std::vector<ByteRange> ranges;
  for (int p = 0; p < comm.world_size(); ++p) {
    ranges.push_back({static_cast<size_t>(p) * kBytes, kBytes});
  }
  buffer.resize(ranges.size() * kBytes);
  return comm.all_gather(buffer, ranges);
}

TEST(DelayedLink, TakesTheBytesOfTheOthersOverTheBandwidth) {
  on_delayed_ranks(3, {.bytes_per_second = 1e6}, [](Communicator& comm) {
    std::vector<std::byte> buffer;
    const auto start = Clock::now();
    gather(comm, buffer).wait("the gather");
    EXPECT_GE(Clock::now() - start, 20ms);  // 2 x 10000 bytes at 1 MB/s
  });
}

TEST(DelayedLink, CarriesOneTransferAfterTheOther) {
  on_delayed_ranks(2, {.latency = 5ms, .bytes_per_second = 1e6}, [](Communicator& comm) {
    std::vector<std::byte> first, second, third;
    const auto start = Clock::now();
    Pending a = gather(comm, first), b = gather(comm, second), c = gather(comm, third);
    a.wait("the first");
    EXPECT_GE(Clock::now() - start, 15ms);
    b.wait("the second");
    EXPECT_GE(Clock::now() - start, 25ms);
    c.wait("the third");
    EXPECT_GE(Clock::now() - start, 35ms);
  });
}

TEST(DelayedLink, HidesBehindWhatIsComputedMeanwhile) {
  std::atomic<int> still_to_call = 2;
  on_delayed_ranks(2, {.latency = 50ms}, [&](Communicator& comm) {
    Pending pending = comm.barrier();
    --still_to_call;
    while (still_to_call > 0) std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(50ms);
    EXPECT_TRUE(pending.test()) << "its time is over, and both ranks have called";
  });
}

TEST(DelayedLink, OfARankAloneIsNone) {
  on_delayed_ranks(1, {.latency = 1h}, [](Communicator& comm) {
    AnyCall call(comm, Verb::kAllReduce, 0);
    EXPECT_TRUE(call.start().test());
  });
}

TEST(DelayedLink, PassesDeadlinesAndAbortsOn) {
  on_delayed_ranks(2, {.latency = 1us}, [](Communicator& comm) {
    if (comm.rank() == 1) return;
    comm.set_deadline(50ms);
    const Caught caught = wait_and_catch(comm.barrier(), "the other");
    EXPECT_THAT(caught.late_ranks, ElementsAre(1));
    EXPECT_THAT(caught.text, HasSubstr("the other"));
  });
  on_delayed_ranks(2, {.latency = 1us}, [](Communicator& comm) {
    if (comm.rank() == 1) return comm.abort(ExitCode::kBadData);
    try {
      comm.barrier().wait("the other");  // throws at once where the other was faster
      ADD_FAILURE() << "no abort was passed on";
    } catch (const CommunicationError& error) {
      EXPECT_THAT(error.what(), HasSubstr("aborted with code 3"));
    }
  });
}

TEST(DelayedLink, IsRefusedWhereItIsNone) {
  for (const LinkOptions& link :
       {LinkOptions{.latency = -1us}, LinkOptions{.bytes_per_second = 0},
        LinkOptions{.bytes_per_second = std::numeric_limits<double>::quiet_NaN()},
        LinkOptions{.latency =
                        std::chrono::duration<double>(std::numeric_limits<double>::infinity())}}) {
    EXPECT_THROW(make_delayed_communicator(std::move(make_thread_communicators(1)[0]), link),
                 Error);
  }
}

}  // namespace
}  // namespace flashshard::test
