// Ranks as threads: the common checks, deadlines, mismatched calls, aborts.
#include "comm/threads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>
#include <tuple>

#include "tests/comm/verb_checks.h"

namespace flashshard::test {

namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::chrono_literals;

/// Runs `body` on every rank, each in a thread of its own.
void on_all_ranks(int world_size, const std::function<void(Communicator&)>& body,
                  std::chrono::duration<double> deadline = 20s) {
  auto ranks = make_thread_communicators(world_size);
  std::vector<std::thread> threads;
  for (auto& rank : ranks) {
    rank->set_deadline(deadline);
    threads.emplace_back([&body, &rank] { body(*rank); });
  }
  for (std::thread& thread : threads) thread.join();
}

class ThreadRanks : public testing::TestWithParam<std::tuple<VerbCheck, int>> {};

TEST_P(ThreadRanks, Check) {
  const auto& [check, world_size] = GetParam();
  on_all_ranks(world_size, check.run);
}

INSTANTIATE_TEST_SUITE_P(All, ThreadRanks,
                         testing::Combine(testing::ValuesIn(all_checks()),
                                          testing::Values(1, 2, 3, 4, 7)),
                         [](const auto& instance) {
                           return std::string(std::get<0>(instance.param).name) + "On" +
                                  std::to_string(std::get<1>(instance.param));
                         });

class LateThreadRank : public testing::TestWithParam<Verb> {};

TEST_P(LateThreadRank, IsNamedByEveryWaitingRankAndByItself) {
  constexpr int kLate = 1;
  std::atomic<int> waiting = 2;
  on_all_ranks(
      3,
      [&](Communicator& comm) {
        AnyCall call(comm, GetParam(), kLate);
        if (comm.rank() == kLate) {
          while (waiting > 0) std::this_thread::sleep_for(1ms);
          EXPECT_THROW((void)call.start(), CommunicationError);
          return;
        }
        const Caught caught = wait_and_catch(call.start(), "the late one");
        EXPECT_THAT(caught.late_ranks, ElementsAre(kLate));
        EXPECT_THAT(caught.text, HasSubstr("rank 1 did not arrive"));
        EXPECT_THAT(caught.text, HasSubstr("the late one"));
        EXPECT_THROW((void)comm.barrier(), CommunicationError) << "the error state stays";
        --waiting;
      },
      100ms);
}

INSTANTIATE_TEST_SUITE_P(All, LateThreadRank, testing::ValuesIn(kAllVerbs),
                         [](const auto& instance) { return std::string(name_of(instance.param)); });

TEST(LateThreadRanks, AreAllNamed) {
  on_all_ranks(
      4,
      [](Communicator& comm) {
        if (comm.rank() % 2 == 1) return;
        EXPECT_THAT(wait_and_catch(comm.barrier(), "the barrier").late_ranks, ElementsAre(1, 3));
      },
      100ms);
}

TEST(MismatchedThreadRanks, AreToldWhoCallsWhat) {
  on_all_ranks(2, [](Communicator& comm) {
    std::vector<int64_t> values(3);
    try {
      (comm.rank() == 0 ? comm.all_reduce(values, ReduceOp::kSum) : comm.barrier()).wait("this");
      ADD_FAILURE() << "different verbs met";
    } catch (const CommunicationError& error) {
      EXPECT_THAT(error.what(), HasSubstr("do not match"));
      EXPECT_THAT(error.what(), HasSubstr("all_reduce(sum, 3 values)"));
      EXPECT_THAT(error.what(), HasSubstr("barrier"));
    }
  });
}

/// Calls that differ between ranks 0 and 1 in one detail.
struct Mismatch {
  std::string_view name;
  Pending (*start)(Communicator&, std::vector<std::byte>& buffer);
};

std::ostream& operator<<(std::ostream& out, const Mismatch& mismatch) {
  return out << mismatch.name;
}

class MismatchedSizes : public testing::TestWithParam<Mismatch> {};

TEST_P(MismatchedSizes, EndTheCall) {
  on_all_ranks(2, [](Communicator& comm) {
    std::vector<std::byte> buffer(64);
    try {
      GetParam().start(comm, buffer).wait("this");
      ADD_FAILURE() << "the mismatch was not seen";
    } catch (const CommunicationError& error) {
      EXPECT_THAT(error.what(), HasSubstr("do not match"));
    }
  });
}

std::vector<ByteRange> two_ranges(size_t first, size_t second) {
  return {{0, first}, {32, second}};
}

INSTANTIATE_TEST_SUITE_P(
    All, MismatchedSizes,
    testing::Values(Mismatch{"AllReduceOp",
                             [](Communicator& comm, std::vector<std::byte>& buffer) {
                               return comm.all_reduce(
                                   {reinterpret_cast<int64_t*>(buffer.data()), 2},
                                   comm.rank() == 0 ? ReduceOp::kMax : ReduceOp::kMin);
                             }},
                    Mismatch{"BroadcastRoot",
                             [](Communicator& comm, std::vector<std::byte>& buffer) {
                               return comm.broadcast(buffer, comm.rank());
                             }},
                    Mismatch{"BroadcastSize",
                             [](Communicator& comm, std::vector<std::byte>& buffer) {
                               const size_t bytes = comm.rank() == 0 ? 8 : 9;
                               return comm.broadcast(std::span(buffer).first(bytes), 0);
                             }},
                    Mismatch{"AllGatherRanges",
                             [](Communicator& comm, std::vector<std::byte>& buffer) {
                               return comm.all_gather(
                                   buffer, comm.rank() == 0 ? two_ranges(4, 8) : two_ranges(8, 4));
                             }},
                    Mismatch{"AllToAllRanges",
                             [](Communicator& comm, std::vector<std::byte>& buffer) {
                               // Rank 0 expects one byte more from rank 1 than that one sends.
                               const auto send = two_ranges(8, 8);
                               const auto receive =
                                   comm.rank() == 0 ? two_ranges(8, 9) : two_ranges(8, 8);
                               return comm.all_to_all(buffer, send, buffer, receive);
                             }}),
    [](const auto& instance) { return std::string(instance.param.name); });

TEST(AbortedThreadRanks, StopWaiting) {
  on_all_ranks(3, [](Communicator& comm) {
    if (comm.rank() == 2) {
      comm.abort(ExitCode::kBadData);
      comm.abort(ExitCode::kInternal);  // the first word counts
      return;
    }
    try {
      comm.barrier().wait("the barrier");
      ADD_FAILURE() << "the barrier completed without rank 2";
    } catch (const CommunicationError& error) {
      EXPECT_THAT(error.late_ranks(), ElementsAre(2));
      EXPECT_THAT(error.what(), HasSubstr("rank 2 has aborted with code 3"));
    }
  });
}

TEST(LateThreadRanks, OfASplitAreNamedByTheirNumbersInTheRun) {
  on_all_ranks(
      4,
      [](Communicator& comm) {
        const auto part = comm.split(comm.rank() % 2);
        if (comm.rank() % 2 == 0) {
          part->barrier().wait("the ranks that are all there");
        } else if (comm.rank() == 1) {
          const Caught caught = wait_and_catch(part->barrier(), "the late one");
          EXPECT_THAT(caught.late_ranks, ElementsAre(3));
          EXPECT_THAT(caught.text, HasSubstr("rank 3 did not arrive"));
        }
      },
      100ms);
}

TEST(AbortedThreadRanks, EndTheWaitsInEveryPartOfASplit) {
  on_all_ranks(4, [](Communicator& comm) {
    const auto part = comm.split(comm.rank() / 2);
    if (comm.rank() == 1) {
      part->abort(ExitCode::kBadData);
      return;
    }
    if (comm.rank() == 3) return;
    try {
      part->barrier().wait("a rank of the other part");  // throws at once where rank 1 was faster
      ADD_FAILURE() << "no abort was passed on";
    } catch (const CommunicationError& error) {
      EXPECT_THAT(error.late_ranks(), ElementsAre(1));
      EXPECT_THAT(error.what(), HasSubstr("rank 1 has aborted with code 3"));
    }
  });
}

TEST(AbandonedCall, IsNotTouchedByTheOtherRanks) {
  auto ranks = make_thread_communicators(2);
  {
    // The buffer is gone before rank 1 arrives, as in a rank that unwinds with an error.
    std::vector<int64_t> values(4);
    const Pending pending = ranks[0]->all_reduce(values, ReduceOp::kSum);
  }
  std::vector<int64_t> values(4);
  EXPECT_THROW((void)ranks[1]->all_reduce(values, ReduceOp::kSum), CommunicationError);
}

TEST(AbandonedCall, IsForgivenWhenItWasComplete) {
  auto ranks = make_thread_communicators(1);
  { const Pending pending = ranks[0]->barrier(); }
  ranks[0]->barrier().wait("the next call");
}

TEST(UnfinishedCall, FailsItsTestOnceTheRanksHaveFailed) {
  auto ranks = make_thread_communicators(2);
  Pending pending = ranks[0]->barrier();
  EXPECT_FALSE(pending.test());
  ranks[1]->abort(ExitCode::kInternal);
  EXPECT_THROW(pending.test(), CommunicationError);
}

TEST(ThreadCommunicators, NeedARank) {
  EXPECT_THROW(make_thread_communicators(0), Error);
  EXPECT_EQ(make_thread_communicators(1)[0]->transport(), "threads");
}

}  // namespace
}  // namespace flashshard::test
