// The health counters of an update: which groups they look at, and what they find there. A tensor
// of 4096 groups has exactly one that is sampled, so in these tests all groups are alike.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "kernels/cpu/update.h"
#include "kernels/cpu/update_loops.h"
#include "kernels/numerics/health.h"
#include "tests/kernels/numerics/update_state.h"
#include "tests/sanitizers.h"

namespace flashshard {
namespace {

constexpr int64_t kStretch = numerics::kHealthStretch * kGroup;  // elements
const RuleCase kAdamWCase = rule_cases()[0];
const RuleCase kLionCase = rule_cases()[2];
constexpr UpdateFormat kV2{};
constexpr UpdateFormat kV1{WeightFormat::kCorrected24, StateFormat::kFlashOptim, DType::kBF16,
                           Rounding::kNearest};

bool operator==(const UpdateHealth& a, const UpdateHealth& b) {
  return std::ranges::all_of(kHealthCounters,
                             [&](const auto& c) { return a.*c.second == b.*c.second; });
}

/// One step on a stretch whose elements are all prepared by set(state, element); the same with
/// every instruction set.
template <class Set>
UpdateHealth health_of(const RuleCase& rule, const UpdateFormat& format, double learning_rate,
                       const Set& set) {
  UpdateState start(rule, format, kStretch);
  for (size_t i = 0; i < start.size(); ++i) set(start, i);
  const UpdateFactors factors =
      make_update_factors(rule.rule, rule.hyper, learning_rate, 1.0, format.rounding, 1);
  UpdateHealth scalar;
  for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {  // scalar first
    UpdateState state = start;
    UpdateHealth health;
    UpdateTensor tensor = state.tensor();
    tensor.weight_decay_factor = 1;
    tensor.health = &health;
    loops->update(tensor, factors, 0, tensor.count);
    if (loops->name == "scalar") scalar = health;
    EXPECT_TRUE(health == scalar) << loops->name;
  }
  EXPECT_EQ(scalar.sampled_groups, 1);
  return scalar;
}

TEST(SampledGroups, AreOneOfEveryStretchAndAnotherAtEveryUpdate) {
  std::set<int64_t> seen;
  for (uint64_t t = 1; t <= 1000; ++t) {
    const uint64_t key = numerics::health_key({.seed = 1, .tensor = 2}, t);
    for (int64_t stretch : {int64_t{0}, int64_t{7}, int64_t{1} << 40}) {
      const int64_t group = numerics::sampled_group(key, stretch);
      ASSERT_EQ(group / numerics::kHealthStretch, stretch);
      if (stretch == 0) seen.insert(group);
    }
  }
  EXPECT_GT(seen.size(), 850u);  // 1000 draws of 4096 give 887 different ones
}

TEST(Health, IsTheSameForEverySplitAndInstructionSet) {
  constexpr int64_t kCount = 2 * kStretch + 13 * kGroup + 7;
  for (const RuleCase& rule : {kAdamWCase, kLionCase}) {
    for (const UpdateFormat& format : {kV2, kV1}) {
      UpdateState start(rule, format, kCount);
      start.fill(5, 40);
      const UpdateFactors factors =
          make_update_factors(rule.rule, rule.hyper, 1e-6, 1.0, format.rounding, 9);
      UpdateHealth whole;
      UpdateState state = start;
      UpdateTensor tensor = state.tensor();
      tensor.health = &whole;
      cpu::scalar_update_loops().update(tensor, factors, 0, kCount);
      EXPECT_GE(whole.sampled_groups, 2);
      EXPECT_GT(whole.sampled_updates, 0);
      for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
        for (int64_t piece : {int64_t{kGroup}, 37 * kGroup, kStretch}) {
          UpdateHealth parts;
          UpdateState split = start;
          UpdateTensor part = split.tensor();
          part.health = &parts;
          for (int64_t i = 0; i < kCount; i += piece) {
            loops->update(part, factors, i, std::min(kCount, i + piece));
          }
          EXPECT_TRUE(parts == whole) << loops->name << " in pieces of " << piece;
          EXPECT_TRUE(split == state);
        }
      }
    }
  }
}

TEST(Health, OfAShardIsThatOfItsElementsInTheWholeTensor) {
  UpdateState whole(kAdamWCase, kV2, 2 * kStretch);
  whole.fill(6, 40);
  const UpdateFactors factors =
      make_update_factors(Rule::kAdamW, kAdamWCase.hyper, 1e-6, 1.0, Rounding::kStochastic, 3);
  UpdateHealth together, apart;
  UpdateTensor tensor = whole.tensor();
  tensor.health = &apart;
  const UpdateState start = whole;
  for (int64_t first : {int64_t{0}, 999 * kGroup}) {  // two ranks' memory
    UpdateTensor shard = tensor;
    shard.first_element = first;
    shard.count = first == 0 ? 999 * kGroup : 2 * kStretch - first;
    shard.gradient = whole.gradient16.data() + first;
    shard.weight = whole.weight16.data() + first;
    shard.correction = whole.correction8.data() + first;
    shard.momentum = whole.momentum8.data() + first;
    shard.momentum_scale = whole.momentum_scale.data() + first / kGroup;
    shard.variance = whole.variance8.data() + first;
    shard.variance_scale = whole.variance_scale.data() + first / kGroup;
    cpu::update_loops().update(shard, factors, 0, shard.count);
  }
  whole = start;
  tensor = whole.tensor();
  tensor.health = &together;
  cpu::update_loops().update(tensor, factors, 0, tensor.count);
  EXPECT_TRUE(apart == together);
  EXPECT_EQ(together.sampled_groups, 2);
}

TEST(Health, OfAnOrdinaryStepHasNothingToReport) {
  const UpdateHealth health = health_of(kAdamWCase, kV2, 1e-2, [](UpdateState& s, size_t i) {
    s.set_weight(i, 0.5f);
    s.set_gradient(i, i % 2 == 0 ? 1e-3f : -2e-3f);
  });
  EXPECT_EQ(health.sampled_updates, kGroup);
  EXPECT_EQ(health.lost_updates, 0);
  EXPECT_EQ(health.saturated_groups + health.edge_scales, 0);
  EXPECT_EQ(health.variance_codes_at_1 + health.variance_codes_at_0, 0);
}

TEST(Health, CountsWhatItsSharesAreSharesOf) {
  const auto set = [](UpdateState& s, size_t i) { s.set_gradient(i, 1.0f); };
  const UpdateHealth adamw = health_of(kAdamWCase, kV2, 1e-2, set);
  EXPECT_EQ(adamw.coded_groups, 1);
  EXPECT_EQ(adamw.sampled_scales, 2);
  EXPECT_EQ(adamw.sampled_variances, kGroup);
  const UpdateHealth lion = health_of(kLionCase, kV2, 1e-2, set);
  EXPECT_EQ(lion.sampled_scales, 1);
  EXPECT_EQ(lion.sampled_variances, 0);
  UpdateFormat fp32 = kV2;
  fp32.state = StateFormat::kFP32;
  const UpdateHealth none = health_of(kAdamWCase, fp32, 1e-2, set);
  EXPECT_EQ(none.coded_groups + none.sampled_scales + none.sampled_variances, 0);
}

TEST(Health, CountsUpdatesThatRoundToNothing) {
  const auto set = [](UpdateState& s, size_t i) {
    s.set_weight(i, 1.0f);
    s.set_gradient(i, 1.0f);
  };
  EXPECT_EQ(health_of(kAdamWCase, kV1, 1e-6, set).lost_updates, kGroup);
  EXPECT_EQ(health_of(kAdamWCase, kV1, 1e-4, set).lost_updates, 0);
  // Stochastic rounding moves some of them.
  const UpdateHealth v2 = health_of(kAdamWCase, kV2, 4e-6, set);
  EXPECT_GT(v2.lost_updates, 0);
  EXPECT_LT(v2.lost_updates, kGroup);
}

TEST(Health, KnowsWhichElementOfAGroupMoves) {
  const std::vector<size_t> all = {0, 3, 4, 9, 15, 16, 22, 31};
  for (size_t mover : test::kUnderSanitizers ? std::vector<size_t>{9} : all) {
    const auto set = [mover](UpdateState& s, size_t i) {
      s.set_weight(i, 1.0f);
      s.set_gradient(i, i % kGroup == mover ? 1.0f : 0.0f);
    };
    for (const UpdateFormat& format : {kV2, kV1}) {
      const UpdateHealth health = health_of(kAdamWCase, format, 1e-2, set);
      EXPECT_EQ(health.sampled_updates, 1) << mover;
      EXPECT_EQ(health.lost_updates, 0) << mover;
    }
  }
}

TEST(Health, DoesNotTakeAnElementWithoutAnUpdateForALostOne) {
  const UpdateHealth health = health_of(kAdamWCase, kV2, 1e-2, [](UpdateState& s, size_t i) {
    s.set_weight(i, 1.0f);
    s.set_gradient(i, 0.0f);
  });
  EXPECT_EQ(health.sampled_updates, 0);
  EXPECT_EQ(health.lost_updates, 0);
  EXPECT_EQ(health.edge_scales, 0) << "a fresh group's scale is no finding";
}

TEST(Health, CountsVarianceCodesAtTheLowerEnd) {
  const auto spread = [](UpdateState& s, size_t i) {
    s.set_weight(i, 1.0f);
    s.set_gradient(i, i % kGroup == 0 ? 1.0f : 1e-3f);  // the others lie below half a code
  };
  const UpdateHealth v2 = health_of(kAdamWCase, kV2, 1e-3, spread);
  EXPECT_EQ(v2.variance_codes_at_1, kGroup - 1);
  EXPECT_EQ(v2.variance_codes_at_0, 0);
  const UpdateHealth v1 = health_of(kAdamWCase, kV1, 1e-3, spread);
  EXPECT_EQ(v1.variance_codes_at_1, 0);
  EXPECT_EQ(v1.variance_codes_at_0, kGroup - 1);
  EXPECT_EQ(health_of(kLionCase, kV1, 1e-3, spread).variance_codes_at_0, 0) << "it has none";
}

TEST(Health, CountsScalesAtBothEndsOfTheFormat) {
  const auto gradients = [](float size) {
    return [size](UpdateState& s, size_t i) {
      s.set_weight(i, 1.0f);
      s.set_gradient(i, size);
    };
  };
  EXPECT_EQ(health_of(kAdamWCase, kV2, 1e-3, gradients(0x1p-62f)).edge_scales, 2);
  EXPECT_EQ(health_of(kAdamWCase, kV1, 1e-3, gradients(1e-6f)).edge_scales, 2);  // fp16 subnormals
  EXPECT_EQ(health_of(kAdamWCase, kV2, 1e-3, gradients(1e-6f)).edge_scales, 0);
  // Lion's first momentum is a hundredth of the gradient: 65500, which fp16 rounds to its largest.
  UpdateFormat wide_v1 = kV1, wide_v2 = kV2;
  wide_v1.gradient = wide_v2.gradient = DType::kFP32;
  EXPECT_EQ(health_of(kLionCase, wide_v1, 1e-3, gradients(6.55e6f)).saturated_groups, 1);
  EXPECT_EQ(health_of(kLionCase, wide_v2, 1e-3, gradients(6.55e6f)).saturated_groups, 0);
}

TEST(Health, LooksAtAShortLastGroupWithoutItsPadding) {
  int64_t updates = 0;
  for (uint64_t t = 1; t <= 40000 && updates == 0; ++t) {
    UpdateState state(kAdamWCase, kV2, 7);
    for (size_t i = 0; i < state.size(); ++i) state.set_gradient(i, 1.0f);
    UpdateHealth health;
    UpdateTensor tensor = state.tensor();
    tensor.health = &health;
    const UpdateFactors factors =
        make_update_factors(Rule::kAdamW, kAdamWCase.hyper, 1e-2, 1.0, Rounding::kStochastic, t);
    cpu::update_loops().update(tensor, factors, 0, tensor.count);
    updates = health.sampled_updates;
  }
  EXPECT_EQ(updates, 7);
}

}  // namespace
}  // namespace flashshard
