// The common checks over real MPI: a GoogleTest program that all ranks of an mpirun run together.
// Rank 0 prints the results, the others only their failures; every rank ends with the same code.
// Deadlines keep a failing rank from hanging the others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>
#include <sys/prctl.h>

#include <climits>
#include <csignal>
#include <cstdio>
#include <map>
#include <memory>
#include <tuple>

#include "comm/mpi.h"
#include "tests/comm/verb_checks.h"

namespace flashshard::test {

namespace {

using testing::Contains;
using testing::HasSubstr;
using namespace std::chrono_literals;

std::shared_ptr<MpiEnvironment> environment;
std::unique_ptr<Communicator> control;  // outside of the tests: keeps the ranks in step
std::map<size_t, std::unique_ptr<Communicator>> communicators;  // by message limit

MpiOptions options_with_limit(size_t message_limit) {
  return {.deadline = 10s, .roll_call_grace = 500ms, .message_limit = message_limit};
}

std::unique_ptr<Communicator> connect(size_t message_limit = size_t{1} << 24) {
  return make_mpi_communicator(environment, options_with_limit(message_limit));
}

/// One communicator for each limit, for as long as no test breaks it.
Communicator& communicator_with(size_t message_limit) {
  auto& communicator = communicators[message_limit];
  if (!communicator) communicator = connect(message_limit);
  return *communicator;
}

class MpiRanks : public testing::TestWithParam<std::tuple<VerbCheck, size_t>> {};

TEST_P(MpiRanks, Check) {
  const auto& [check, message_limit] = GetParam();
  check.run(communicator_with(message_limit));
}

INSTANTIATE_TEST_SUITE_P(
    All, MpiRanks,
    // 7 bytes a message: everything is cut into pieces, as what exceeds INT_MAX bytes would be.
    testing::Combine(testing::ValuesIn(all_checks()), testing::Values(size_t{1} << 24, size_t{7})),
    [](const auto& instance) {
      return std::string(std::get<0>(instance.param).name) + "InMessagesOf" +
             std::to_string(std::get<1>(instance.param));
    });

/// Tests of failures: rank 1 is the odd one out. The ranks meet on `control` before and after.
class MpiFailure : public testing::Test {
 protected:
  static constexpr int kOdd = 1;

  void SetUp() override {
    if (control->world_size() < 2) GTEST_SKIP() << "needs two ranks";
    comm_ = connect();
    control->barrier().wait("the start of the test");
  }
  void meet() { control->barrier().wait("the others, done with their part"); }

  std::unique_ptr<Communicator> comm_;
};

class LateMpiRank : public MpiFailure, public testing::WithParamInterface<Verb> {};

TEST_P(LateMpiRank, IsNamedByEveryWaitingRank) {
  AnyCall call(*comm_, GetParam(), kOdd);
  if (comm_->rank() == kOdd) {
    meet();  // is busy elsewhere for as long as the others wait
    return;
  }
  comm_->set_deadline(200ms);
  const Caught caught = wait_and_catch(call.start(), "the late one");
  meet();
  EXPECT_THAT(caught.late_ranks, Contains(kOdd));
  // A rank that waits answers the roll call. (A broadcast's root does not wait for the ranks below
  // it.)
  EXPECT_EQ(caught.late_ranks.size(), 1u);
  EXPECT_THAT(caught.text, HasSubstr("rank 1 (" + std::string(comm_->host(kOdd)) + ")"));
  EXPECT_THAT(caught.text, HasSubstr("did not arrive"));
  EXPECT_THAT(caught.text, HasSubstr("the late one"));
  EXPECT_THROW((void)comm_->barrier(), CommunicationError) << "the error state stays";
}

INSTANTIATE_TEST_SUITE_P(All, LateMpiRank, testing::ValuesIn(kAllVerbs),
                         [](const auto& instance) { return std::string(name_of(instance.param)); });

TEST_F(MpiFailure, ARankThatComesLaterLearnsWhereTheOthersWaited) {
  std::vector<std::byte> buffer(8);
  comm_->set_deadline(200ms);
  if (comm_->rank() != 0) {
    EXPECT_THAT(wait_and_catch(comm_->broadcast(buffer, 0), "the root").late_ranks,
                testing::ElementsAre(0));
    meet();
    return;
  }
  meet();  // the others have given up
  const Caught caught = wait_and_catch(comm_->barrier(), "another call");
  EXPECT_THAT(caught.text, HasSubstr("do not match: rank 0 waits in barrier"));
  EXPECT_THAT(caught.text, HasSubstr("broadcast(8 bytes from rank 0)"));
}

TEST_F(MpiFailure, ALateRankOfASplitIsNamedByItsNumberInTheRun) {
  if (control->world_size() < 4) GTEST_SKIP() << "needs four ranks";
  const auto part = comm_->split(comm_->rank() % 2);
  part->set_deadline(200ms);
  if (comm_->rank() == 1) {
    const Caught caught = wait_and_catch(part->barrier(), "the late one");
    EXPECT_THAT(caught.late_ranks, testing::ElementsAre(3));
    EXPECT_THAT(caught.text, HasSubstr("rank 3 (" + std::string(comm_->host(3)) + ")"));
  }
  meet();
}

TEST_F(MpiFailure, ARankThatWaitsInAPartIsNotLateForTheWhole) {
  if (control->world_size() < 4) GTEST_SKIP() << "needs four ranks";
  const auto part = comm_->split(comm_->rank() / 2);
  Caught caught;
  if (comm_->rank() < 2) {
    comm_->set_deadline(500ms);
    caught = wait_and_catch(comm_->barrier(), "all");
  } else if (comm_->rank() == 2) {
    caught = wait_and_catch(part->barrier(), "the part");  // its own deadline is 10 s
  }
  if (comm_->rank() != 3) {
    EXPECT_THAT(caught.late_ranks, testing::ElementsAre(3)) << caught.text;
  }
  meet();
}

TEST_F(MpiFailure, DifferentVerbsAreSeenLongBeforeTheDeadline) {
  std::vector<int64_t> values(3);
  const auto start = std::chrono::steady_clock::now();
  const Caught caught = wait_and_catch(
      comm_->rank() == kOdd ? comm_->barrier() : comm_->all_reduce(values, ReduceOp::kSum), "this");
  EXPECT_TRUE(caught.thrown);
  EXPECT_THAT(caught.text, HasSubstr("do not match"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, 8s) << "the deadline is 10 s";
  meet();
}

TEST_F(MpiFailure, DifferentSizesAreRefused) {
  std::vector<std::byte> buffer(64);
  std::vector<ByteRange> ranges(static_cast<size_t>(comm_->world_size()));
  ranges[kOdd] = {0, comm_->rank() == kOdd ? size_t{9} : size_t{8}};
  // The odd rank sends 9 bytes where the others expect 8. It learns nothing from that: it gets what
  // it expects.
  const Caught caught = wait_and_catch(comm_->all_gather(buffer, ranges), "this");
  if (comm_->rank() != kOdd) {
    EXPECT_TRUE(caught.thrown);
    EXPECT_THAT(caught.text, HasSubstr("sizes do not match: rank 1 sends more"));
  }
  meet();
}

TEST_F(MpiFailure, AShorterMessageIsRefused) {
  std::vector<std::byte> buffer(64);
  const size_t bytes = comm_->rank() == 0 ? 5 : 8;
  const Caught caught = wait_and_catch(comm_->broadcast(std::span(buffer).first(bytes), 0), "this");
  if (comm_->rank() == kOdd) {
    EXPECT_THAT(caught.text, HasSubstr("rank 0 sends 5 bytes where 8 bytes are expected"));
  }
  meet();
}

TEST_F(MpiFailure, AnErrorOfOneRankEndsTheWaitOfTheOthers) {
  std::vector<std::byte> buffer(64);
  const std::vector<ByteRange> none(static_cast<size_t>(comm_->world_size()));
  std::vector<ByteRange> ranges = none;
  ranges[0] = {0, comm_->rank() == 0 ? size_t{9} : size_t{8}};
  const Caught first = wait_and_catch(comm_->all_gather(buffer, ranges), "the first call");
  if (comm_->rank() == 0) {
    // Rank 0 got all that it expected; in the next call the others are no longer with it.
    ASSERT_FALSE(first.thrown) << first.text;
    const auto start = std::chrono::steady_clock::now();
    const Caught second = wait_and_catch(comm_->barrier(), "the second call");
    EXPECT_THAT(second.text, HasSubstr("reports: the ranks' sizes do not match"));
    EXPECT_LT(std::chrono::steady_clock::now() - start, 8s) << "the deadline is 10 s";
  }
  meet();
}

TEST_F(MpiFailure, AnAbandonedCallEndsTheCommunicator) {
  { const Pending pending = comm_->rank() == kOdd ? comm_->barrier() : Pending(); }
  if (comm_->rank() == kOdd) {
    EXPECT_THROW((void)comm_->barrier(), CommunicationError);
  }
  meet();
}

TEST(MpiCommunicator, RefusesMessageLimitsThatMpiCannotCount) {
  for (size_t limit : {size_t{0}, size_t{INT_MAX} + 1}) {
    EXPECT_THROW(make_mpi_communicator(environment, options_with_limit(limit)), Error);
  }
  EXPECT_EQ(control->transport(), "mpi");
}

TEST(MpiEnvironment, IsOnePerProcess) { EXPECT_THROW(MpiEnvironment(5s), Error); }

/// Failures of ranks other than 0, on stderr with the rank in front.
class FailurePrinter : public testing::EmptyTestEventListener {
  // Remembered here: UnitTest's lock is held while a result is reported.
  void OnTestStart(const testing::TestInfo& info) override {
    name_ = std::string(info.test_suite_name()) + "." + info.name();
  }
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "[rank %d] %s, line %d: %s\n", control->rank(), name_.c_str(),
                 result.line_number(), result.message());
  }

  std::string name_;
};

int run_all_tests() {
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (control->rank() != 0) {
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailurePrinter);
  }
  std::vector<int64_t> result = {RUN_ALL_TESTS()};
  control->all_reduce(result, ReduceOp::kMax).wait("the results of all ranks");
  return result[0] == 0 ? 0 : 1;
}

}  // namespace
}  // namespace flashshard::test

int main(int argc, char** argv) {
  using namespace flashshard;
  using namespace flashshard::test;
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // if ctest ends mpirun, the ranks go with it
  testing::InitGoogleTest(&argc, argv);
  int code = 1;
  try {
    environment = std::make_shared<MpiEnvironment>(std::chrono::seconds(15));
    control = connect();
    code = run_all_tests();
    communicators.clear();
    control.reset();
    environment.reset();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    if (control) control->abort(error.code());
    return static_cast<int>(error.code());
  }
  // After tests of failures the environment leaves MPI_Finalize out, and mpirun would call that an
  // improper end.
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0) MPI_Finalize();
  return code;
}
