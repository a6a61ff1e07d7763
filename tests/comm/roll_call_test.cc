// The verdict of a roll call: given what the ranks say, who is late?
#include "comm/roll_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace flashshard {

namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Attendance waiting(uint64_t call, Verb verb, double seconds) {
  Attendance attendance{.call = call, .signature = {.verb = verb}, .waited_seconds = seconds};
  attendance.set_reason("the norm");
  return attendance;
}

/// Rank 0 of four on four nodes has waited 30 s in the barrier of call 12; so have the others.
class FourRanks : public testing::Test {
 protected:
  Diagnosis diagnose_with(const std::vector<int>& awaited) const {
    return diagnose(
        {.rank = 0, .own = own_, .answers = answers_, .awaited = awaited, .hosts = hosts_});
  }

  Attendance own_ = waiting(12, Verb::kBarrier, 30);
  std::vector<std::optional<Attendance>> answers_ =
      std::vector<std::optional<Attendance>>(4, waiting(12, Verb::kBarrier, 29));
  std::vector<std::string> hosts_ = {"node0", "node1", "node2", "node3"};
};

TEST_F(FourRanks, ASilentRankIsLate) {
  answers_[2].reset();
  const Diagnosis diagnosis = diagnose_with({2});
  EXPECT_THAT(diagnosis.late_ranks, ElementsAre(2));
  EXPECT_EQ(diagnosis.what, "rank 2 (node2) did not arrive at barrier within 30 s");
}

TEST_F(FourRanks, ASilentRankWhoseBytesHaveComeIsNotToBlame) {
  answers_[1].reset();
  answers_[2].reset();
  EXPECT_THAT(diagnose_with({2}).late_ranks, ElementsAre(2));
}

TEST_F(FourRanks, ASilentRankIsToBlameForARankThatWaitsElsewhere) {
  // Rank 1 owes the bytes, but waits in an earlier call for rank 3.
  answers_[1] = waiting(11, Verb::kAllToAll, 30);
  answers_[3].reset();
  EXPECT_THAT(diagnose_with({1}).late_ranks, ElementsAre(3));
}

TEST_F(FourRanks, AnErrorElsewhereIsPassedOn) {
  answers_[2].reset();
  answers_[3]->failed = 1;
  answers_[3]->set_reason("sizes do not match");
  const Diagnosis diagnosis = diagnose_with({2});
  EXPECT_THAT(diagnosis.late_ranks, ElementsAre(3));
  EXPECT_EQ(diagnosis.what, "rank 3 (node3) reports: sizes do not match");
}

TEST_F(FourRanks, ARankInAnotherVerbIsAMismatch) {
  answers_[1] = waiting(12, Verb::kAllToAll, 28);
  const Diagnosis diagnosis = diagnose_with({1});
  EXPECT_THAT(diagnosis.late_ranks, ElementsAre(1));
  EXPECT_EQ(diagnosis.what,
            "the ranks' calls do not match: rank 0 waits in barrier (call 12, the norm), "
            "rank 1 (node1) in all_to_all (call 12, the norm)");
}

TEST_F(FourRanks, ARankThatArrivedLongAfterTheOthersIsLate) {
  answers_[3]->waited_seconds = 2;
  const Diagnosis diagnosis = diagnose_with({3});
  EXPECT_THAT(diagnosis.late_ranks, ElementsAre(3));
  EXPECT_THAT(diagnosis.what, HasSubstr("arrived late at barrier, after others had waited 30 s"));
}

TEST_F(FourRanks, ThisRankMayBeTheLateOne) {
  own_.waited_seconds = 0.1;
  EXPECT_THAT(diagnose_with({1, 2, 3}).late_ranks, ElementsAre(0));
}

TEST_F(FourRanks, WhenAllAreThereTheBytesAreSlow) {
  const Diagnosis diagnosis = diagnose_with({1});
  EXPECT_THAT(diagnosis.late_ranks, ElementsAre(1));
  EXPECT_THAT(diagnosis.what, HasSubstr("bytes of rank 1 (node1) did not come within 30 s"));
  EXPECT_THAT(diagnose_with({}).late_ranks, IsEmpty());
}

TEST(Attendance, CutsALongReason) {
  Attendance attendance;
  attendance.set_reason(std::string(1000, 'x'));
  EXPECT_EQ(attendance.reason_text(), std::string(255, 'x'));
}

TEST(RankNames, AreCutAfterEight) {
  const std::vector<int> ranks = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  EXPECT_EQ(name_ranks(ranks, {}),
            "rank 0, rank 1, rank 2, rank 3, rank 4, rank 5, rank 6, rank 7 and 2 more");
}

TEST(CallSignature, HasAWordAndACodeOfItsOwn) {
  std::vector<CallSignature> calls = {{.verb = Verb::kAllToAll},
                                      {.verb = Verb::kAllGather, .bytes = 5},
                                      {.verb = Verb::kBroadcast, .root = 2, .bytes = 7},
                                      {.verb = Verb::kBarrier}};
  for (ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin}) {
    calls.push_back({.verb = Verb::kAllReduce, .op = op, .bytes = 16});
  }
  std::vector<std::string> texts;
  for (size_t i = 0; i < calls.size(); ++i) {
    EXPECT_EQ(code_of(calls[i]), static_cast<int>(i));
    texts.push_back(describe(calls[i]));
    const std::string_view name = name_of_code(static_cast<int>(i));
    EXPECT_EQ(texts.back().substr(0, 6), name.substr(0, 6));
  }
  EXPECT_THAT(texts,
              ElementsAre("all_to_all", "all_gather(5 bytes)", "broadcast(7 bytes from rank 2)",
                          "barrier", "all_reduce(sum, 2 values)", "all_reduce(max, 2 values)",
                          "all_reduce(min, 2 values)"));
}

}  // namespace
}  // namespace flashshard
