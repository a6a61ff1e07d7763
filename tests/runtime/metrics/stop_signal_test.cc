// Requests to stop are noted, told apart and honoured once.
#include "runtime/stop_signal.h"

#include <gtest/gtest.h>

#include <csignal>

#include "tests/runtime/metrics/temporary_folder.h"

namespace flashshard {
namespace {

using testing::TemporaryFolder;

struct SignalCase {
  int signal;
  StopCause cause;
  const char* name;
};

class StopSignalOf : public ::testing::TestWithParam<SignalCase> {};

TEST_P(StopSignalOf, IsNotedAndStaysUntilTheEnd) {
  const StopSignal stop;
  EXPECT_FALSE(stop.poll());
  ASSERT_EQ(raise(GetParam().signal), 0);
  EXPECT_TRUE(stop.poll());
  EXPECT_EQ(stop.poll().cause, GetParam().cause);
  EXPECT_EQ(name_of(stop.poll().cause), GetParam().name);
}

INSTANTIATE_TEST_SUITE_P(Signals, StopSignalOf,
                         ::testing::Values(SignalCase{SIGUSR1, StopCause::kUserSignal1, "SIGUSR1"},
                                           SignalCase{SIGUSR2, StopCause::kUserSignal2, "SIGUSR2"},
                                           SignalCase{SIGTERM, StopCause::kTerminate, "SIGTERM"}),
                         [](const auto& instance) { return instance.param.name; });

TEST(StopSignal, KeepsTheStrongestOfSeveralRequests) {
  const StopSignal stop;
  raise(SIGTERM);
  raise(SIGUSR1);
  EXPECT_EQ(stop.poll().cause, StopCause::kTerminate);
}

TEST(StopSignal, ForgetsTheRequestsOfAnEarlierRun) {
  {
    const StopSignal earlier;
    raise(SIGUSR1);
  }
  EXPECT_FALSE(StopSignal().poll());
}

TEST(StopSignal, PutsTheEarlierHandlersBack) {
  EXPECT_EQ(testing::in_child([] {
              { const StopSignal stop; }
              raise(SIGUSR1);
              return 0;
            }),
            128 + SIGUSR1);
}

TEST(StopSignal, IsSharedByRanksThatAreThreadsOfOneProcess) {
  const StopSignal first;
  {
    const StopSignal second;
    raise(SIGUSR1);
    EXPECT_EQ(second.poll().cause, StopCause::kUserSignal1);
  }
  EXPECT_EQ(first.poll().cause, StopCause::kUserSignal1);
}

TEST(StopSignal, FindsTheStopFileAndRemovesItWhenHonoured) {
  const TemporaryFolder folder;
  const StopSignal stop(folder / "stop");
  EXPECT_FALSE(stop.poll());
  testing::put(folder / "stop", "");
  EXPECT_EQ(stop.poll().cause, StopCause::kStopFile);
  EXPECT_EQ(name_of(stop.poll().cause), "the stop file");
  stop.honoured();
  EXPECT_FALSE(std::filesystem::exists(folder / "stop"));
  EXPECT_FALSE(stop.poll());
}

TEST(StopSignal, LooksForNoFileOnRanksThatLeaveItToRankZero) {
  const StopSignal stop;
  stop.honoured();
  EXPECT_FALSE(stop.poll());
  EXPECT_EQ(name_of(stop.poll().cause), "nothing");
}

}  // namespace
}  // namespace flashshard
