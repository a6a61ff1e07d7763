// Ranks of a host get cores apart, whole ones before hardware threads, node by node; what the
// launcher has bound and what a control group allows are respected.
#include "runtime/thread_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <thread>

#include "tests/optim/ranks.h"

namespace flashshard {
namespace {

using cpu::Core;
using cpu::ProcessorList;
using ::testing::ElementsAre;

/// Cores c of `nodes` nodes in turn with processors c, c + cores, ..., one for each thread.
std::vector<Core> machine(int nodes, int cores_of_a_node, int threads) {
  std::vector<Core> cores;
  const int count = nodes * cores_of_a_node;
  for (int c = 0; c < count; ++c) {
    Core core{c / cores_of_a_node, {}};
    for (int t = 0; t < threads; ++t) core.processors.push_back(c + t * count);
    cores.push_back(core);
  }
  return cores;
}

proto::RunConfig config(int threads = 0, bool bind = true) {
  proto::RunConfig result;
  result.mutable_run()->set_threads(threads);
  if (!bind) result.mutable_run()->set_bind_cores(proto::CoreBinding::NONE);
  return result;
}

std::vector<ThreadPlacement> all_ranks(const std::vector<Core>& cores, int ranks,
                                       const proto::RunConfig& run = config(),
                                       std::optional<double> quota = {}) {
  std::vector<ThreadPlacement> placements;
  for (int index = 0; index < ranks; ++index) {
    placements.push_back(place_threads(run, {cores, quota, ranks, index, ranks}));
  }
  return placements;
}

TEST(ThreadPlacement, OfARankAloneIsAThreadForEveryCoreAndNoBinding) {
  const auto placement = all_ranks(machine(1, 4, 2), 1).front();
  EXPECT_EQ(placement.threads, 4);
  EXPECT_FALSE(placement.bound);
  EXPECT_EQ(placement.text, "4 threads on CPUs 0-7");
}

TEST(ThreadPlacement, GivesRanksWholeCoresNodeByNode) {
  const auto ranks = all_ranks(machine(2, 4, 2), 4);
  EXPECT_THAT(ranks[0].processors, ElementsAre(0, 1, 8, 9));
  EXPECT_THAT(ranks[1].processors, ElementsAre(2, 3, 10, 11));
  EXPECT_THAT(ranks[2].processors, ElementsAre(4, 5, 12, 13));
  EXPECT_THAT(ranks[3].processors, ElementsAre(6, 7, 14, 15));
  for (const ThreadPlacement& rank : ranks) {
    EXPECT_EQ(rank.threads, 2);
    EXPECT_TRUE(rank.bound);
  }
  EXPECT_EQ(ranks[1].text, "2 threads on CPUs 2-3,10-11; 4 ranks of this host share CPUs 0-15");
}

TEST(ThreadPlacement, GivesEachOfMoreRanksThanCoresAHardwareThread) {
  const auto ranks = all_ranks(machine(1, 2, 2), 3);
  EXPECT_THAT(ranks[0].processors, ElementsAre(0));
  EXPECT_THAT(ranks[1].processors, ElementsAre(1));
  EXPECT_THAT(ranks[2].processors, ElementsAre(2, 3));
  for (const ThreadPlacement& rank : ranks) EXPECT_EQ(rank.threads, 1);
}

TEST(ThreadPlacement, DividesAQuotaByAllRanksOfTheHostWhateverTheyMayRunOn) {
  // Two of four ranks share this half of the machine; the control group holds all four.
  const ThreadPlacement rank = place_threads(config(), {machine(1, 16, 1), 8.0, 2, 0, 4});
  EXPECT_EQ(rank.threads, 2);
}

TEST(ThreadPlacement, OfMoreRanksThanProcessorsIsLeftToTheKernel) {
  for (const ThreadPlacement& rank : all_ranks(machine(1, 2, 1), 5)) {
    EXPECT_EQ(rank.threads, 1);
    EXPECT_FALSE(rank.bound);
    EXPECT_EQ(rank.text, "1 thread on CPUs 0-1; 5 ranks of this host share them");
  }
}

class AnyMachine : public ::testing::TestWithParam<std::tuple<int, int, int, int>> {};

TEST_P(AnyMachine, IsSharedOutWithNothingLeftAndNothingTwice) {
  const auto [nodes, cores, threads, ranks] = GetParam();
  const std::vector<Core> all = machine(nodes, cores, threads);
  const auto placements = all_ranks(all, ranks);
  if (ranks == 1 || ranks > nodes * cores * threads) return;
  std::multiset<int> dealt;
  for (const ThreadPlacement& rank : placements) {
    EXPECT_TRUE(rank.bound);
    EXPECT_EQ(rank.threads, placements.front().threads);
    EXPECT_LE(rank.threads, std::ssize(rank.processors));
    dealt.insert(rank.processors.begin(), rank.processors.end());
  }
  const ProcessorList expected = ProcessorShare{all, {}, 1, 0}.processors();
  EXPECT_EQ(ProcessorList(dealt.begin(), dealt.end()), expected);
}

INSTANTIATE_TEST_SUITE_P(Shapes, AnyMachine,
                         ::testing::Combine(::testing::Values(1, 2), ::testing::Values(1, 3, 8),
                                            ::testing::Values(1, 2),
                                            ::testing::Values(1, 2, 3, 5, 8, 64)));

TEST(ThreadPlacement, TakesTheThreadsThatAreAskedFor) {
  // Less than all of the machine: other runs may have the rest, so nobody is bound.
  const auto few = all_ranks(machine(1, 8, 1), 2, config(2));
  EXPECT_EQ(few[1].threads, 2);
  EXPECT_FALSE(few[1].bound);
  const auto many = all_ranks(machine(1, 8, 1), 2, config(6));
  EXPECT_EQ(many[1].threads, 6);
  EXPECT_THAT(many[1].processors, ElementsAre(4, 5, 6, 7));
}

TEST(ThreadPlacement, BindsNobodyWhereThatIsNotWanted) {
  for (const ThreadPlacement& rank : all_ranks(machine(1, 4, 1), 2, config(0, false))) {
    EXPECT_FALSE(rank.bound);
    EXPECT_EQ(rank.threads, 2);
    EXPECT_THAT(rank.processors, ElementsAre(0, 1, 2, 3));
  }
}

TEST(ThreadPlacement, StartsNoMoreThreadsThanTheControlGroupHasTimeFor) {
  const auto ranks = all_ranks(machine(1, 16, 1), 2, config(), 5.5);
  EXPECT_EQ(ranks[0].threads, 2);
  EXPECT_FALSE(ranks[0].bound) << "which processors are free is the kernel's to know";
  EXPECT_EQ(ranks[0].text,
            "2 threads on CPUs 0-15; 2 ranks of this host share them; the control group allows 5.5 "
            "processors' time");
  EXPECT_EQ(all_ranks(machine(1, 16, 1), 2, config(), 0.5)[0].threads, 1);
  EXPECT_EQ(all_ranks(machine(1, 16, 1), 2, config(4), 0.5)[0].threads, 4);
  const auto enough = all_ranks(machine(1, 16, 1), 2, config(), 16);
  EXPECT_EQ(enough[0].threads, 8);
  EXPECT_TRUE(enough[0].bound);
}

TEST(ProcessorSharing, IsAmongRanksOfAHostThatMayRunOnTheSameProcessors) {
  const ProcessorList all = cpu::allowed_processors();
  std::mutex mutex;
  test::run_ranks(3, [&](Communicator& communicator) {
    const ProcessorShare share = share_processors(communicator);
    const std::lock_guard lock(mutex);
    EXPECT_EQ(share.processors(), all);
    EXPECT_EQ(share.ranks, 3);
    EXPECT_EQ(share.index, communicator.rank());
  });
  if (all.size() < 2) return;
  // As a launcher that binds the last rank to a processor of its own.
  test::run_ranks(3, [&](Communicator& communicator) {
    const bool last = communicator.rank() == 2;
    if (last) {
      ASSERT_TRUE(cpu::restrict_to({all.back()}));
    }
    const ProcessorShare share = share_processors(communicator);
    const std::lock_guard lock(mutex);
    EXPECT_EQ(share.ranks, last ? 1 : 2);
    EXPECT_EQ(share.index, last ? 0 : communicator.rank());
    EXPECT_EQ(share.processors(), last ? ProcessorList{all.back()} : all);
  });
}

TEST(ThreadPlacement, IsAppliedToTheCallingThread) {
  std::thread([] {
    ProcessorShare share{cpu::read_cores(cpu::allowed_processors()), {}, 1, 0};
    const auto last = static_cast<int>(share.processors().size()) - 1;
    if (last < 1) return;
    share.ranks = last + 1;
    share.index = last;
    const ThreadPlacement placement = settle_threads(config(), share);
    EXPECT_TRUE(placement.bound);
    EXPECT_EQ(cpu::allowed_processors(), placement.processors);
    // The kernel refuses processors that are not there; then nothing is bound.
    share = {{Core{0, {60000}}, Core{0, {60001}}}, {}, 2, 0};
    EXPECT_FALSE(settle_threads(config(), share).bound);
    EXPECT_EQ(cpu::allowed_processors(), placement.processors);
  }).join();
}

}  // namespace
}  // namespace flashshard
