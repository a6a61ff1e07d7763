// numerics.check: what it finds in settings, weights and counters, and what follows.
#include "runtime/numerics_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <numeric>

#include "tests/runtime/runs.h"

namespace flashshard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

/// Groups of 32 elements with two 8-bit moments, in health.
UpdateHealth coded_groups(int64_t groups) {
  return {.sampled_groups = groups,
          .coded_groups = groups,
          .sampled_scales = 2 * groups,
          .sampled_variances = 32 * groups,
          .sampled_updates = 32 * groups};
}

class NumericsChecks : public test::Runs {
 protected:
  std::string log(const std::string& run) const {
    std::ifstream file(folder_ / run / "logs" / "rank-00000.log");
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static std::vector<std::string> kinds_of(const std::vector<NumericsFinding>& findings) {
    std::vector<std::string> kinds;
    for (const NumericsFinding& found : findings) kinds.push_back(found.kind);
    return kinds;
  }
  std::vector<std::string> settings(std::vector<std::string> overrides) const {
    return kinds_of(harmful_settings(config("run", std::move(overrides))));
  }
  std::vector<std::string> counters(const UpdateHealth& health,
                                    std::vector<std::string> overrides = {}) const {
    return kinds_of(unhealthy_counters(health, config("run", std::move(overrides))));
  }
};

TEST_F(NumericsChecks, KnowSettingsThatHarm) {
  const std::string nearest = "optimizer.rounding=NEAREST", slow = "optimizer.beta2=0.999";
  EXPECT_THAT(settings({}), IsEmpty());
  EXPECT_THAT(settings({slow}), IsEmpty()) << "stochastic variances fall";
  EXPECT_THAT(settings({slow, nearest}), ElementsAre("beta2", "momentum"));
  EXPECT_THAT(settings({"optimizer.beta2=0.996", nearest}), ElementsAre("momentum"));
  EXPECT_THAT(settings({slow, nearest, "optimizer.rule=LION"}), ElementsAre("momentum"))
      << "it has no variance";
  EXPECT_THAT(settings({"optimizer.beta1=0", nearest, "optimizer.rule=SGD"}), IsEmpty());
  EXPECT_THAT(settings({"optimizer.beta1=0.4", nearest}), IsEmpty()) << "a code of 1 becomes 0";
  EXPECT_THAT(settings({nearest, "optimizer.state=FP32"}), IsEmpty());
  EXPECT_THAT(settings({slow, "optimizer.state_format=FLASHOPTIM_V1"}), IsEmpty());
  EXPECT_THAT(settings({"optimizer.master_weight_bits=0", nearest}),
              ElementsAre("momentum", "master_weight_bits"));
  EXPECT_THAT(settings({"optimizer.master_weight_bits=0"}), IsEmpty());
  EXPECT_THAT(settings({"model.dtype=FP32", "optimizer.state=FP32", nearest}), IsEmpty());
}

TEST(ShortestStep, IsHalfTheLastBitOfTheMasterOrOfFP32WhereItRoundsStochastically) {
  const auto nearest = Rounding::kNearest, stochastic = Rounding::kStochastic;
  EXPECT_EQ(shortest_step(WeightFormat::kSplit24, nearest, 1.5f), 0x1p-16);
  EXPECT_EQ(shortest_step(WeightFormat::kSplit24, stochastic, 1.5f), 0x1p-24);
  EXPECT_EQ(shortest_step(WeightFormat::kSplit24, nearest, 0.25f), 0x1p-18);
  EXPECT_EQ(shortest_step(WeightFormat::kCorrected24, nearest, 1.0f), 0x1p-15);
  EXPECT_EQ(shortest_step(WeightFormat::kBF16, nearest, 1.0f), 0x1p-8);
  EXPECT_EQ(shortest_step(WeightFormat::kBF16, stochastic, 1.0f), 0x1p-24);
  EXPECT_EQ(shortest_step(WeightFormat::kFP32, nearest, 1.0f), 0x1p-24);
  EXPECT_GT(shortest_step(WeightFormat::kSplit24, nearest, 0.0f), 0);
}

TEST_F(NumericsChecks, KnowCountersBeyondTheirLimits) {
  UpdateHealth health = coded_groups(300);
  EXPECT_THAT(counters(health), IsEmpty());
  health.variance_codes_at_1 = 9600;
  EXPECT_THAT(counters(health), IsEmpty()) << "a small variance is no harm";
  health.lost_updates = 9000;
  EXPECT_THAT(counters(health), IsEmpty()) << "stochastic rounding makes up for them";
  EXPECT_THAT(counters(health, {"optimizer.rounding=NEAREST"}), ElementsAre("lost_updates"));
  health.saturated_groups = 4;
  EXPECT_THAT(counters(health), ElementsAre("saturated_groups"));
  health.edge_scales = 7;
  EXPECT_THAT(counters(health), ElementsAre("edge_scales", "saturated_groups"));
  health.variance_codes_at_0 = 97;
  EXPECT_THAT(counters(health),
              ElementsAre("variance_codes_at_0", "edge_scales", "saturated_groups"));
}

TEST_F(NumericsChecks, AreNotCalmedByTensorsWithoutCodes) {
  UpdateHealth health = coded_groups(300);
  health.sampled_groups = 300'000;  // fp32 state beside them
  health.saturated_groups = 4;
  health.edge_scales = 7;
  health.variance_codes_at_0 = 97;
  EXPECT_THAT(counters(health),
              ElementsAre("variance_codes_at_0", "edge_scales", "saturated_groups"));
}

TEST_F(NumericsChecks, WarnOnceForEachKindWhenEnoughGroupsWereSeen) {
  std::vector<std::string> lines;
  NumericsCheck check(config("run"), [&](std::string_view line) { lines.emplace_back(line); });
  UpdateHealth some = coded_groups(100);
  some.edge_scales = 100;
  check.after_update(some);
  EXPECT_TRUE(lines.empty()) << "200 scales are too few for a verdict";
  for (int i = 0; i < 10; ++i) check.after_update(some);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], HasSubstr("health.edge_scales: 50.0 %"));
  UpdateHealth saturated = coded_groups(300);
  saturated.saturated_groups = 300;
  check.after_update(saturated);
  EXPECT_EQ(lines.size(), 2u);
}

TEST_F(NumericsChecks, WaitForEnoughOfTheGroupsThatHaveCodes) {
  std::vector<std::string> lines;
  NumericsCheck check(config("run"), [&](std::string_view line) { lines.emplace_back(line); });
  UpdateHealth few = coded_groups(1);
  few.sampled_groups = 1000;
  few.saturated_groups = 1;
  for (int i = 0; i < 255; ++i) check.after_update(few);
  EXPECT_TRUE(lines.empty());
  check.after_update(few);
  EXPECT_EQ(lines.size(), 1u);
}

TEST_F(NumericsChecks, RefusedCountersEndTheRunAndOffLooksAtNothing) {
  const auto ignore = [](std::string_view) {};
  UpdateHealth bad = coded_groups(300);
  bad.variance_codes_at_0 = 300;
  NumericsCheck refuse(config("run", {"numerics.check=REFUSE"}), ignore);
  try {
    refuse.after_update(bad);
    FAIL() << "not refused";
  } catch (const AgreedError& error) {
    EXPECT_EQ(error.code(), ExitCode::kNumerics);
    EXPECT_THAT(error.what(), HasSubstr("3.1 % of the sampled variances vanished"));
  }
  NumericsCheck off(config("run", {"numerics.check=OFF"}), ignore);
  EXPECT_NO_THROW(off.after_update(bad));
}

// Norm gains are 1 and have 32-bit masters: half their last bit is 6e-8.
TEST_F(NumericsChecks, ALearningRateThatMovesNothingIsRefusedBeforeTheFirstStep) {
  const std::vector<std::string> slow = {"optimizer.learning_rate=1e-10", "train.steps=6"};
  for (int ranks : {1, 3}) {
    const std::string run_name = "refused" + std::string(1, static_cast<char>('0' + ranks));
    auto overrides = slow;
    overrides.emplace_back("numerics.check=REFUSE");
    const Error error = failure(ranks, config(run_name, overrides));
    EXPECT_EQ(error.code(), ExitCode::kNumerics);
    EXPECT_THAT(error.what(), HasSubstr("optimizer.learning_rate 1e-10 cannot move"));
    EXPECT_THAT(error.what(), HasSubstr("norm.weight has weights up to 1"));
    EXPECT_TRUE(metrics(run_name).empty());
  }
  EXPECT_EQ(run(2, config("warned", slow)), ExitCode::kDone);
  EXPECT_THAT(log("warned"), HasSubstr("cannot move the largest weights"));
  auto off = slow;
  off.emplace_back("numerics.check=OFF");
  EXPECT_EQ(run(1, config("off", off)), ExitCode::kDone);
  EXPECT_THAT(log("off"), Not(HasSubstr("cannot move")));
  // SGD's steps have no such length.
  auto sgd = slow;
  sgd.insert(sgd.end(), {"optimizer.rule=SGD", "numerics.check=REFUSE"});
  EXPECT_EQ(run(1, config("sgd", sgd)), ExitCode::kDone);
}

TEST_F(NumericsChecks, ATensorIsJudgedByItsOwnGroup) {
  const auto with = [&](const char* name, std::vector<std::string> overrides) {
    overrides.insert(overrides.end(), {"train.steps=6", "numerics.check=REFUSE"});
    return config(name, overrides);
  };
  const std::string slow = "optimizer.learning_rate=1e-10";
  const Error error =
      failure(1, with("a", {"optimizer.group={ pattern: '*norm*' learning_rate_factor: 1e-9 }"}));
  EXPECT_EQ(error.code(), ExitCode::kNumerics);
  EXPECT_THAT(error.what(), HasSubstr("with its group's factor"));
  const std::string faster = "optimizer.group={ pattern: '*' learning_rate_factor: 1000 }";
  EXPECT_EQ(run(1, with("b", {slow, faster})), ExitCode::kDone);
  const std::string lion = "optimizer.group={ pattern: '*norm*' rule: LION }";
  EXPECT_EQ(failure(1, with("c", {slow, "optimizer.rule=SGD", lion})).code(), ExitCode::kNumerics);
  const std::string none = "optimizer.group={ pattern: '*' learning_rate_factor: 0 }";
  EXPECT_EQ(run(1, with("d", {none})), ExitCode::kDone) << "nothing is meant to move";
  const auto nearest = with("e", {"optimizer.rounding=NEAREST",
                                  "optimizer.group={ pattern: '*norm*' master_weight_bits: 0 }"});
  EXPECT_THAT(kinds_of(harmful_settings(nearest)), ElementsAre("momentum", "master_weight_bits"));
}

class SampledGroups : public NumericsChecks, public ::testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(Release, SampledGroups, ::testing::Values("false", "true"));

TEST_P(SampledGroups, AreTheSameAtEveryWorldSize) {
  std::vector<std::vector<int64_t>> sampled;
  for (int ranks : {1, 2, 3}) {
    const std::string run_name = "ranks" + std::string(1, static_cast<char>('0' + ranks));
    std::vector<std::string> overrides;
    if (std::string_view(GetParam()) == "true") {
      overrides = {"parallelism.stage=2", "parallelism.reduce=EACH", "parallelism.release=true",
                   "optimizer.clip_norm=0", "optimizer.skip_scope=BUCKET"};
    }
    ASSERT_EQ(run(ranks, config(run_name, overrides)), ExitCode::kDone);
    auto& counts = sampled.emplace_back();
    for (const auto& line : metrics(run_name)) {
      counts.push_back(line["health"]["sampled_groups"].get<int64_t>());
      for (const auto& [name, counter] : kHealthCounters) {
        EXPECT_GE(line["health"].at(name).get<int64_t>(), 0);
      }
    }
  }
  EXPECT_EQ(sampled[0].front(), 0) << "the first line knows of no update";
  EXPECT_GT(std::accumulate(sampled[0].begin(), sampled[0].end(), int64_t{0}), 0);
  EXPECT_EQ(sampled[0], sampled[1]);
  EXPECT_EQ(sampled[0], sampled[2]);
}

}  // namespace
}  // namespace flashshard
