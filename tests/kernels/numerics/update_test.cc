// The update rules in every format: against fp64 and PyTorch, the same at every split, vector width
// and alignment, and never letting NaN or infinity into a state.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "kernels/cpu/update.h"
#include "kernels/cpu/update_loops.h"
#include "kernels/error.h"
#include "tests/kernels/numerics/golden_updates.h"
#include "tests/kernels/numerics/update_state.h"

namespace flashshard {
namespace {

UpdateFactors factors_at(const RuleCase& rule, uint64_t t, Rounding rounding,
                         double learning_rate = 1e-2) {
  return make_update_factors(rule.rule, rule.hyper, learning_rate, 0.75, rounding, t);
}

void serial(int64_t count, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }

class UpdateRules : public testing::TestWithParam<UpdateCase> {
 protected:
  const RuleCase& rule() const { return GetParam().rule; }
  bool has_momentum() const { return flashshard::has_momentum(rule().rule, rule().hyper.beta1); }
  bool has_variance() const { return flashshard::has_variance(rule().rule); }

  /// Runs `body(format)` for every weight format.
  template <class Body>
  void for_each_format(const Body& body) {
    for (const UpdateFormat& format : formats_with(GetParam().state)) {
      SCOPED_TRACE(name_of(format));
      body(format);
      if (HasFatalFailure()) return;
    }
  }
};
const auto case_name = [](const auto& instance) { return name_of(instance.param); };
INSTANTIATE_TEST_SUITE_P(All, UpdateRules, testing::ValuesIn(all_update_cases()), case_name);

TEST(UpdateLoops, AreThereForTheProcessor) {
  const auto loops = cpu::available_update_loops();
  EXPECT_EQ(loops.front()->name, "scalar");
#if defined(__aarch64__)
  EXPECT_EQ(loops.back()->name, "neon");
#elif defined(__x86_64__)
  EXPECT_EQ(loops.back()->name != "scalar", static_cast<bool>(__builtin_cpu_supports("avx2")));
#endif
}

TEST_P(UpdateRules, VectorLoopsGiveTheScalarBitsAtEveryLengthAndAlignment) {
  const auto loops = cpu::available_update_loops();
  for_each_format([&](const UpdateFormat& format) {
    bool moved = false;
    // Around whole groups every length; a step of 3 elsewhere.
    for (int64_t count = 1; count <= 130; count += count % 32 < 3 || count % 32 > 28 ? 1 : 3) {
      UpdateState start(rule(), format, count, 96, static_cast<size_t>(count % 7));
      start.fill(static_cast<uint64_t>(count), 30);
      UpdateState expected = start;
      for (uint64_t t = 1; t <= 2; ++t)
        loops[0]->update(expected.tensor(), factors_at(rule(), t, format.rounding), 0, count);
      moved = moved || !(expected == start);
      for (size_t k = 1; k < loops.size(); ++k) {
        UpdateState state = start;
        for (uint64_t t = 1; t <= 2; ++t)
          loops[k]->update(state.tensor(), factors_at(rule(), t, format.rounding), 0, count);
        ASSERT_TRUE(state == expected) << loops[k]->name << " at length " << count;
      }
    }
    EXPECT_TRUE(moved);
  });
}

TEST_P(UpdateRules, VectorLoopsGiveTheScalarBitsForWildStates) {
  const auto loops = cpu::available_update_loops();
  for_each_format([&](const UpdateFormat& format) {
    UpdateState start(rule(), format, 6000);
    start.fill(99, 110);
    UpdateState expected = start;
    const UpdateFactors factors = factors_at(rule(), 7, format.rounding);
    const int64_t rejected = loops[0]->update(expected.tensor(), factors, 0, 6000);
    for (const cpu::UpdateLoops* each : loops) {
      UpdateState state = start;
      EXPECT_EQ(each->update(state.tensor(), factors, 0, 6000), rejected);
      EXPECT_TRUE(state == expected) << each->name;
    }
  });
}

TEST_P(UpdateRules, TheSplitOverThreadsAndShardsChangesNoBit) {
  constexpr int64_t kCount = 70001;
  const UpdateFormat format{.state = GetParam().state};
  UpdateState start(rule(), format, kCount);
  start.fill(5, 20);
  const UpdateFactors factors = factors_at(rule(), 3, format.rounding);
  UpdateState whole = start;
  const UpdateTensor tensor = whole.tensor();
  cpu::update({&tensor, 1}, factors, serial);

  UpdateState threaded = start;
  const UpdateTensor threaded_tensor = threaded.tensor();
  cpu::update({&threaded_tensor, 1}, factors,
              [](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
                std::vector<std::jthread> threads;
                for (int64_t i = count; i-- > 0;) threads.emplace_back(body, i, i + 1);
              });
  EXPECT_TRUE(threaded == whole);

  UpdateState sharded = start;
  for (int64_t begin : {int64_t{32 * 1500}, int64_t{0}, int64_t{32 * 7}}) {
    const int64_t end = begin == 0 ? 32 * 7 : begin == 32 * 7 ? 32 * 1500 : kCount;
    cpu::update_loops().update(sharded.tensor(), factors, begin, end);
  }
  EXPECT_TRUE(sharded == whole);
}

TEST_P(UpdateRules, AGroupsNewBitsDependOnItsOwnElementsAlone) {
  for_each_format([&](const UpdateFormat& format) {
    UpdateState alone(rule(), format, 160);
    alone.fill(8, 12);
    UpdateState crowded = alone;
    for (size_t i = 0; i < 160; ++i) {
      if (i / kGroup != 2) crowded.set_gradient(i, static_cast<float>(i) * 3.0f - 70.0f);
    }
    cpu::update_loops().update(alone.tensor(), factors_at(rule(), 2, format.rounding), 0, 160);
    cpu::update_loops().update(crowded.tensor(), factors_at(rule(), 2, format.rounding), 0, 160);
    EXPECT_FALSE(crowded == alone);
    for (size_t i = 64; i < 96; ++i) {
      ASSERT_EQ(crowded.weight(i), alone.weight(i));
      ASSERT_EQ(crowded.momentum(i), alone.momentum(i));
      ASSERT_EQ(crowded.root(i), alone.root(i));
    }
  });
}

/// One step in fp64 from the state as stored.
struct Reference {
  std::vector<double> weight, momentum, root;
  std::vector<bool> certain;  // false: the sign that Lion steps along is within rounding of 0

  Reference(const RuleCase& rule, UpdateState& state, const UpdateTensor& tensor, uint64_t t,
            double learning_rate) {
    for (size_t i = 0; i < state.size(); ++i) step(rule, state, tensor, t, learning_rate, i);
  }
  static double largest(const std::vector<double>& values, size_t group) {
    double result = 0;
    for (size_t i = group * kGroup; i < values.size() && i < (group + 1) * kGroup; ++i)
      result = std::max(result, std::fabs(values[i]));
    return result;
  }

 private:
  void step(const RuleCase& rule, UpdateState& state, const UpdateTensor& tensor, uint64_t t,
            double learning_rate, size_t i) {
    const auto& [beta1, beta2, epsilon, dampening, nesterov] = rule.hyper;
    const double x = state.weight(i), m = state.momentum(i), z = state.root(i);
    const double g = double{state.gradient(i)} * 0.75 + double{tensor.coupled_decay} * x;
    const double decayed = x * double{tensor.weight_decay_factor};
    double new_m = m * beta1 + g * (1 - beta1), new_v = 0;
    bool sure = true;
    double next = 0;
    if (has_variance(rule.rule)) {
      new_v = z * z * beta2 + g * g * (1 - beta2);
      const double corrected1 = new_m / (1 - std::pow(beta1, static_cast<double>(t)));
      const double corrected2 = new_v / (1 - std::pow(beta2, static_cast<double>(t)));
      next = decayed - learning_rate * corrected1 / (std::sqrt(corrected2) + epsilon);
    } else if (rule.rule == Rule::kLion) {
      sure = new_m == 0 || std::fabs(new_m) > 1e-6 * (std::fabs(m) + std::fabs(g));
      next = decayed - learning_rate * (new_m > 0 ? 1 : new_m < 0 ? -1 : 0);
      new_m = m * beta2 + g * (1 - beta2);
    } else if (beta1 == 0) {
      new_m = m;
      next = decayed - learning_rate * g;
    } else {
      new_m = m * beta1 + g * (1 - dampening);
      next = decayed - learning_rate * (nesterov ? g + beta1 * new_m : new_m);
    }
    weight.push_back(next);
    momentum.push_back(new_m);
    root.push_back(std::sqrt(new_v));
    certain.push_back(sure);
  }
};

/// Relative error of one rounding to the weight format.
double weight_precision(WeightFormat format) {
  switch (format) {
    case WeightFormat::kSplit24:
    case WeightFormat::kCorrected24:
      return 0x1p-15;
    case WeightFormat::kBF16:
      return 0x1p-7;
    case WeightFormat::kFP16:
      return 0x1p-11;
    case WeightFormat::kFP16Corrected24:
      return 0x1p-18;
    default:
      return 0x1p-22;
  }
}

TEST_P(UpdateRules, AStepAgreesWithFP64WithinTheFormatsPrecision) {
  constexpr double kRate = 1e-2;
  const StateFormat codes = GetParam().state;
  // fp16 scales lose up to 2^-11 of a maximum, below 2^-14 up to 2^-25.
  const double scale_error = codes == StateFormat::kFlashOptim ? 0x1p-11 : 0;
  const double least = codes == StateFormat::kFlashOptim ? 0x1p-24 : 0x1p-60;
  for_each_format([&](const UpdateFormat& format) {
    const bool noisy = codes == StateFormat::kCompanded && format.rounding == Rounding::kStochastic;
    const double codes_off = noisy ? 1 : 0.5;
    UpdateState state(rule(), format, 1000);
    state.fill(11, 16);
    for (uint64_t t = 1; t <= 3; ++t) {
      const UpdateTensor tensor = state.tensor();
      const Reference reference(rule(), state, tensor, t, kRate);
      const UpdateFactors factors = factors_at(rule(), t, format.rounding, kRate);
      ASSERT_EQ(cpu::update_loops().update(tensor, factors, 0, 1000), 0);
      for (size_t i = 0; i < state.size(); ++i) {
        const double x = reference.weight[i];
        // A step of AdamW is at most ~sqrt(1 / (1 - beta2)) learning rates; fp32 loses a few ulp of
        // it.
        if (reference.certain[i]) {
          ASSERT_NEAR(state.weight(i), x, std::fabs(x) * weight_precision(format.weight) + 1e-6)
              << i;
        }
        const double m = reference.momentum[i], z = reference.root[i];
        const double m_scale = Reference::largest(reference.momentum, i / kGroup);
        const double z_scale = Reference::largest(reference.root, i / kGroup);
        const double u = m_scale > 0 ? std::fabs(m) / m_scale : 0;
        const double m_code =
            m_scale * ((1 + u) * (1 + u) * codes_off / 254 * 1.02 + u * scale_error) + least;
        const double z_code = z_scale / 255 * 1.01 + z * scale_error + least;
        if (has_momentum()) {
          ASSERT_NEAR(state.momentum(i), m, has_codes(codes) ? m_code : m_scale * 1e-6) << i;
        }
        if (has_variance()) {
          ASSERT_NEAR(state.root(i), z, has_codes(codes) ? z_code : z_scale * 1e-6) << i;
        }
      }
    }
  });
}

// ---- PyTorch ----

TEST(UpdateRulesInFP32, FollowPyTorch) {
  for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
    SCOPED_TRACE(loops->name);
    golden::expect_adamw_follows_pytorch(golden::step_of(*loops));
    golden::expect_rules_follow_pytorch(golden::step_of(*loops));
  }
}

// ---- what must never enter a state ----

TEST_P(UpdateRules, AGroupWithABadGradientStaysAsItWasAndIsCounted) {
  std::vector<float> bad_gradients = {std::numeric_limits<float>::quiet_NaN(),
                                      std::numeric_limits<float>::infinity(),
                                      -std::numeric_limits<float>::infinity()};
  if (has_momentum()) bad_gradients.push_back(3e38f);  // too large for a state, not for a weight
  for_each_format([&](const UpdateFormat& format) {
    UpdateState clean(rule(), format, 1003);
    clean.fill(21, 8);
    const UpdateState start = clean;
    const UpdateFactors factors = factors_at(rule(), 2, format.rounding);
    ASSERT_EQ(cpu::update_loops().update(clean.tensor(), factors, 0, 1003), 0);
    for (float bad : bad_gradients) {
      for (size_t position : {size_t{37}, size_t{1001}}) {
        UpdateState state = start;
        state.set_gradient(position, bad);
        UpdateState unchanged = state;
        ASSERT_EQ(cpu::update_loops().update(state.tensor(), factors, 0, 1003), 1) << bad;
        for (size_t i = 0; i < state.size(); i += i % kGroup == 0 ? 31 : 1) {  // a group's ends
          UpdateState& expected = i / kGroup == position / kGroup ? unchanged : clean;
          ASSERT_EQ(state.weight(i), expected.weight(i)) << i;
          ASSERT_EQ(state.momentum(i), expected.momentum(i)) << i;
          ASSERT_EQ(state.root(i), expected.root(i)) << i;
        }
      }
    }
  });
}

TEST_P(UpdateRules, AWeightLeavingTheDomainLeavesItsGroupAsItWas) {
  for_each_format([&](const UpdateFormat& format) {
    UpdateState state(rule(), format, 96);
    state.fill(3, 4);
    for (size_t i = 32; i < 64; ++i) {
      state.set_weight(i, 1.0f);
      state.set_gradient(i, 0.0f);
      state.momentum8[i] = 0;
      state.momentum32[i] = 0.0f;
    }
    state.set_weight(50, format.weight >= WeightFormat::kFP16Corrected24 ? 60000.0f : 0x1.fcp127f);
    UpdateState unchanged = state;
    UpdateTensor tensor = state.tensor();
    tensor.weight_decay_factor = 1.25f;
    tensor.coupled_decay = 0;
    const UpdateFactors factors = factors_at(rule(), 4, format.rounding);
    cpu::update({&tensor, 1}, factors, serial);
    EXPECT_EQ(state.rejected_groups, 1);
    for (size_t i = 32; i < 64; ++i) {
      EXPECT_EQ(state.weight(i), unchanged.weight(i));
      EXPECT_EQ(state.root(i), unchanged.root(i));
    }
    EXPECT_NE(state.weight(1), unchanged.weight(1));
  });
}

TEST_P(UpdateRules, AFreshStateWithoutGradientsOnlyDecays) {
  for_each_format([&](const UpdateFormat& format) {
    UpdateState state(rule(), format, 77);
    for (size_t i = 0; i < state.size(); ++i) state.set_weight(i, 1.0f);
    UpdateTensor tensor = state.tensor();
    tensor.weight_decay_factor = 0.5f;
    tensor.coupled_decay = 0;
    cpu::update({&tensor, 1}, factors_at(rule(), 1, format.rounding), serial);
    for (size_t i = 0; i < state.size(); ++i) {
      EXPECT_EQ(state.weight(i), 0.5f);
      EXPECT_EQ(state.momentum(i), 0.0f);
      EXPECT_EQ(state.root(i), 0.0f);
    }
    for (size_t g = 0; g < state.groups(); ++g) {
      EXPECT_EQ(state.momentum_scale[g], state.fresh_scale());
      EXPECT_EQ(state.variance_scale[g], state.fresh_scale());
    }
  });
}

// V1's momentum codes round ties upwards: flashoptim_test.cc has its exceptions.
class SymmetricRules : public UpdateRules {};
std::vector<UpdateCase> symmetric_cases() {
  std::vector<UpdateCase> cases = all_update_cases();
  std::erase_if(cases, [](const UpdateCase& c) { return c.state == StateFormat::kFlashOptim; });
  return cases;
}
INSTANTIATE_TEST_SUITE_P(All, SymmetricRules, testing::ValuesIn(symmetric_cases()), case_name);

TEST_P(SymmetricRules, OppositeWeightsGradientsAndMomentaGiveOppositeResults) {
  for_each_format([&](const UpdateFormat& format) {
    UpdateState start(rule(), format, 333);
    start.fill(31, 20);
    UpdateState negated = start;
    for (size_t i = 0; i < start.size(); ++i) {
      start.set_weight(i, start.weight(i));  // of both the same, but for the sign
      negated.set_weight(i, -start.weight(i));
      negated.set_gradient(i, -start.gradient(i));
      negated.momentum8[i] = static_cast<int8_t>(-start.momentum8[i]);
      negated.momentum32[i] = -start.momentum32[i];
    }
    // Noise is added to the bits of a weight's magnitude, and momenta below 0 take 255 - noise: so
    // stochastic rounding is as symmetric as rounding to nearest.
    for (Rounding rounding : {Rounding::kNearest, format.rounding}) {
      UpdateState state = start, opposite = negated;
      for (uint64_t t = 1; t <= 2; ++t) {
        const UpdateFactors factors = factors_at(rule(), t, rounding);
        cpu::update_loops().update(state.tensor(), factors, 0, 333);
        cpu::update_loops().update(opposite.tensor(), factors, 0, 333);
      }
      for (size_t i = 0; i < state.size(); ++i) {
        ASSERT_EQ(opposite.weight(i), -state.weight(i)) << i;
        ASSERT_EQ(opposite.momentum(i), -state.momentum(i)) << i;
        ASSERT_EQ(opposite.root(i), state.root(i)) << i;
      }
    }
  });
}

TEST(Update, AMomentBeyondTheLargestScaleIsRejectedThoughTheWeightIsFine) {
  for (const UpdateCase& c : all_update_cases()) {
    if (!has_momentum(c.rule.rule, c.rule.hyper.beta1)) continue;
    SCOPED_TRACE(name_of(c));
    UpdateState state(c.rule, {.state = c.state}, 32);
    for (size_t i = 0; i < 32; ++i) state.set_weight(i, 1.0f);
    state.set_gradient(5, 0x1p80f);  // squares to infinity; a bf16 weight could follow
    UpdateTensor tensor = state.tensor();
    cpu::update({&tensor, 1}, factors_at(c.rule, 1, Rounding::kStochastic), serial);
    EXPECT_EQ(state.rejected_groups, 1);
    EXPECT_EQ(state.weight(5), 1.0f);
    EXPECT_EQ(state.momentum(5), 0.0f);
    EXPECT_EQ(state.root(5), 0.0f);
  }
}

TEST(Update, ManyTensorsOfUnequalSizesAreUpdatedInOneCall) {
  const RuleCase& rule = rule_cases()[0];
  std::vector<UpdateState> states, expected;
  std::vector<UpdateTensor> tensors;
  for (int64_t count : {1, 33, 20000, 0, 512, 16384, 40}) {
    states.emplace_back(rule, UpdateFormat{}, count);
    states.back().fill(static_cast<uint64_t>(count), 10);
  }
  expected = states;
  const UpdateFactors factors = factors_at(rule, 1, Rounding::kStochastic);
  for (UpdateState& state : expected)
    cpu::update_loops().update(state.tensor(), factors, 0, static_cast<int64_t>(state.size()));
  for (UpdateState& state : states) tensors.push_back(state.tensor());
  cpu::update(tensors, factors, [](int64_t count, const auto& body) {
    for (int64_t i = 0; i < count; i += 2) body(i, std::min(i + 2, count));
  });
  for (size_t i = 0; i < states.size(); ++i) EXPECT_TRUE(states[i] == expected[i]) << i;
}

// ---- constants of a step ----

TEST(UpdateFactors, AreComputedInFP64AndRoundedOnce) {
  const UpdateFactors f =
      make_update_factors(Rule::kAdamW, {.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8}, 3e-4,
                          0.125, Rounding::kNearest, 3);
  EXPECT_EQ(f.beta1, 0.9f);
  EXPECT_EQ(f.one_minus_beta1, static_cast<float>(1.0 - 0.9));
  EXPECT_NE(f.one_minus_beta2, 1.0f - 0.999f) << "not from the rounded beta";
  EXPECT_EQ(f.step_size, static_cast<float>(3e-4 / (1.0 - std::pow(0.9, 3))));
  EXPECT_EQ(f.inverse_sqrt_correction, static_cast<float>(1 / std::sqrt(1 - std::pow(0.999, 3))));
  EXPECT_EQ(f.gradient_factor, 0.125f);
  EXPECT_EQ(f.t, 3u);
}

TEST(UpdateFactors, RefuseValuesThatNoUpdateCanUse) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto make = [](RuleHyperparameters hyper, double rate, double factor, uint64_t t) {
    return make_update_factors(Rule::kAdamW, hyper, rate, factor, Rounding::kNearest, t);
  };
  EXPECT_THROW(make({.beta1 = 1.0}, 1e-3, 1, 1), Error);
  EXPECT_THROW(make({.beta2 = -0.1}, 1e-3, 1, 1), Error);
  EXPECT_THROW(make({.beta2 = nan}, 1e-3, 1, 1), Error);
  EXPECT_THROW(make({.epsilon = 0}, 1e-3, 1, 1), Error);
  EXPECT_THROW(make({.epsilon = 1e-60}, 1e-3, 1, 1), Error);
  EXPECT_THROW(make({}, -1e-3, 1, 1), Error);
  EXPECT_THROW(make({}, nan, 1, 1), Error);
  EXPECT_THROW(make({}, 1e-3, nan, 1), Error);
  EXPECT_THROW(make({}, 1e-3, 1, 0), Error);
  EXPECT_NO_THROW(make({}, 0, 0, 1));
}

TEST(UpdateFactors, RefuseWhatSGDCannotUseAndIgnoreWhatItDoesNot) {
  const auto make = [](RuleHyperparameters hyper) {
    return make_update_factors(Rule::kSGD, hyper, 1e-3, 1, Rounding::kNearest, 1);
  };
  EXPECT_THROW(make({.beta1 = 1.0}), Error);
  EXPECT_THROW(make({.dampening = 1.5}), Error);
  EXPECT_THROW(make({.dampening = 0.5, .nesterov = true}), Error);
  EXPECT_THROW(make({.beta1 = 0, .nesterov = true}), Error);
  EXPECT_EQ(make({.beta1 = 0, .beta2 = 7, .epsilon = 0}).step_size, 1e-3f);
}

TEST(WeightDecay, ShrinksTheWeightOrGoesIntoTheGradientAsTheRuleHasIt) {
  UpdateTensor tensor;
  set_decay(tensor, Rule::kLion, {.rate = 0.1}, 0.01);
  EXPECT_EQ(tensor.weight_decay_factor, static_cast<float>(1 - 0.1 * 0.01));
  EXPECT_EQ(tensor.coupled_decay, 0.0f);
  set_decay(tensor, Rule::kSGDW, {.rate = 0.1, .peak_learning_rate = 0.04}, 0.01);
  EXPECT_EQ(tensor.weight_decay_factor, static_cast<float>(1 - 0.1 * 0.25)) << "decouple_lr";
  UpdateTensor coupled;
  set_decay(coupled, Rule::kAdam, {.rate = 0.1}, 0.01);
  EXPECT_EQ(coupled.weight_decay_factor, 1.0f);
  EXPECT_EQ(coupled.coupled_decay, 0.1f);
  EXPECT_THROW(set_decay(tensor, Rule::kAdamW, {.rate = 2}, 0.5), Error);
  EXPECT_THROW(set_decay(tensor, Rule::kAdamW, {.rate = -1}, 0.5), Error);
}

}  // namespace
}  // namespace flashshard
