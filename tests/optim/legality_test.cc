// The table of refusals: every row refuses something, says why and what to do, and the
// tables of the documentation name them all.
#include "optim/legality.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "kernels/error.h"

namespace flashshard {
namespace {

using ::testing::HasSubstr;

std::vector<Sharding> every_combination() {
  std::vector<Sharding> all;
  for (int bits = 0; bits < 1 << 17; ++bits) {
    Sharding sharding;
    sharding.stage = bits & 3;
    sharding.reduce = bits & 4 ? ReduceTime::kEach : ReduceTime::kLast;
    sharding.fp32_reduced_gradient = (bits & 8) != 0;
    sharding.local_sums = (bits & 16) != 0;
    sharding.release = (bits & 32) != 0;
    sharding.clips = (bits & 64) != 0;
    sharding.clip = bits & 128 ? ClipMode::kBucket : ClipMode::kGlobal;
    if (bits & 256) sharding.clip = ClipMode::kPrevious;
    sharding.skips_buckets = (bits & 512) != 0;
    sharding.reproducible = (bits & 1024) != 0;
    sharding.two_level = (bits & 2048) != 0;
    if (bits & 4096) sharding.accumulator = AccumulatorFormat::kSplit;
    if (bits & 8192) sharding.group = 2;
    sharding.uneven_groups = sharding.group > 0 && (bits & 16384) != 0;
    if (bits & 32768) {
      sharding.accumulator = AccumulatorFormat::kMoments;
      sharding.group = 0;
      sharding.uneven_groups = false;
      sharding.fp32_state = (bits & 8192) != 0;
      sharding.adamw = (bits & 16384) != 0;
      sharding.v1_weights = (bits & 65536) != 0;
    }
    all.push_back(sharding);
  }
  return all;
}

TEST(Legality, EveryRowRefusesACombinationThatNoOtherRowDoes) {
  for (const Refusal& row : refusals()) {
    int alone = 0;
    for (const Sharding& sharding : every_combination()) {
      int applying = 0;
      for (const Refusal& other : refusals()) applying += other.applies(sharding) ? 1 : 0;
      alone += row.applies(sharding) && applying == 1 ? 1 : 0;
    }
    EXPECT_GT(alone, 0) << row.combination;
  }
}

TEST(Legality, ARefusalNamesTheCombinationTheReasonAndTheRemedy) {
  std::set<std::string> texts;
  for (const Sharding& sharding : every_combination()) {
    const Refusal* refusal = refusal_of(sharding);
    if (refusal == nullptr) {
      EXPECT_NO_THROW(require_legal(sharding, "run.textproto"));
      continue;
    }
    try {
      require_legal(sharding, "run.textproto");
      FAIL() << refusal->combination;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      const std::string text = error.what();
      EXPECT_THAT(text, HasSubstr(" is refused: "));
      EXPECT_THAT(text, HasSubstr("run.textproto"));
      EXPECT_EQ(text.find('`'), std::string::npos);
      texts.insert(text);
    }
  }
  EXPECT_EQ(texts.size(), refusals().size());
}

TEST(Legality, EveryStageHasALegalForm) {
  for (int stage = 0; stage <= 3; ++stage) {
    for (auto reduce : {ReduceTime::kLast, ReduceTime::kEach}) {
      Sharding sharding;
      sharding.stage = stage;
      sharding.reduce = reduce;
      EXPECT_EQ(refusal_of(sharding), nullptr) << stage;
    }
  }
}

TEST(Legality, TheTablesHoldEveryStageAndEveryRefusal) {
  const std::string text = legality_markdown();
  for (int stage = 0; stage <= 3; ++stage) {
    EXPECT_THAT(text, HasSubstr("\n| " + std::string(1, static_cast<char>('0' + stage)) + " | "));
  }
  for (const Refusal& refusal : refusals()) {
    EXPECT_THAT(text, HasSubstr(std::string(refusal.reason)));
    EXPECT_THAT(text, HasSubstr(std::string(refusal.remedy)));
  }
}

}  // namespace
}  // namespace flashshard
