// The AdamW update in every format: against fp64 and PyTorch, the same at every split, vector width
// and alignment, and never letting NaN or infinity into a state.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "kernels/cpu/update.h"
#include "kernels/cpu/update_loops.h"
#include "kernels/error.h"
#include "tests/kernels/numerics/adamw_state.h"

namespace flashshard {
namespace {

constexpr AdamWHyperparameters kHyper{.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8};

AdamWFactors factors_at(uint64_t t, Rounding rounding, double learning_rate = 1e-2) {
  return make_adamw_factors(kHyper, learning_rate, 0.75, rounding, t);
}

void serial(int64_t count, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }

class AdamWFormats : public testing::TestWithParam<AdamWFormat> {};
INSTANTIATE_TEST_SUITE_P(All, AdamWFormats, testing::ValuesIn(all_adamw_formats()),
                         [](const auto& instance) { return name_of(instance.param); });

TEST_P(AdamWFormats, VectorLoopsGiveTheScalarBitsAtEveryLengthAndAlignment) {
  const auto loops = cpu::available_update_loops();
  for (int64_t count = 1; count <= 130; ++count) {
    AdamWState start(GetParam(), count, 96, static_cast<size_t>(count % 7));
    start.fill(static_cast<uint64_t>(count), 30);
    AdamWState expected = start;
    for (uint64_t t = 1; t <= 3; ++t)
      loops[0]->adamw(expected.tensor(), factors_at(t, GetParam().rounding), 0, count);
    if (count > 64) {
      ASSERT_FALSE(expected == start);
    }
    for (size_t k = 1; k < loops.size(); ++k) {
      AdamWState state = start;
      for (uint64_t t = 1; t <= 3; ++t)
        loops[k]->adamw(state.tensor(), factors_at(t, GetParam().rounding), 0, count);
      ASSERT_TRUE(state == expected) << loops[k]->name << " at length " << count;
    }
  }
}

TEST_P(AdamWFormats, VectorLoopsGiveTheScalarBitsForWildStates) {
  const auto loops = cpu::available_update_loops();
  AdamWState start(GetParam(), 20000);
  start.fill(99, 110);
  AdamWState expected = start;
  const AdamWFactors factors = factors_at(7, GetParam().rounding);
  const int64_t rejected = loops[0]->adamw(expected.tensor(), factors, 0, 20000);
  for (const cpu::UpdateLoops* each : loops) {
    AdamWState state = start;
    EXPECT_EQ(each->adamw(state.tensor(), factors, 0, 20000), rejected);
    EXPECT_TRUE(state == expected) << each->name;
  }
}

TEST_P(AdamWFormats, TheSplitOverThreadsAndShardsChangesNoBit) {
  constexpr int64_t kCount = 70001;
  AdamWState start(GetParam(), kCount);
  start.fill(5, 20);
  const AdamWFactors factors = factors_at(3, GetParam().rounding);
  AdamWState whole = start;
  const AdamWTensor tensor = whole.tensor();
  cpu::adamw({&tensor, 1}, factors, serial);

  AdamWState threaded = start;
  const AdamWTensor threaded_tensor = threaded.tensor();
  cpu::adamw({&threaded_tensor, 1}, factors,
             [](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
               std::vector<std::jthread> threads;
               for (int64_t i = count; i-- > 0;) threads.emplace_back(body, i, i + 1);
             });
  EXPECT_TRUE(threaded == whole);

  AdamWState sharded = start;
  for (int64_t begin : {int64_t{32 * 1500}, int64_t{0}, int64_t{32 * 7}}) {
    const int64_t end = begin == 0 ? 32 * 7 : begin == 32 * 7 ? 32 * 1500 : kCount;
    cpu::update_loops().adamw(sharded.tensor(), factors, begin, end);
  }
  EXPECT_TRUE(sharded == whole);
}

/// One step in fp64 from the state as stored.
struct Reference {
  std::vector<double> weight, momentum, root;

  Reference(AdamWState& state, const AdamWTensor& tensor, uint64_t t, double learning_rate) {
    for (size_t i = 0; i < state.size(); ++i) {
      const double g = double{state.gradient(i)} * 0.75;
      const double z = state.root(i);
      const double m = state.momentum(i) * kHyper.beta1 + g * (1 - kHyper.beta1);
      const double v = z * z * kHyper.beta2 + g * g * (1 - kHyper.beta2);
      const double corrected1 = m / (1 - std::pow(kHyper.beta1, static_cast<double>(t)));
      const double corrected2 = v / (1 - std::pow(kHyper.beta2, static_cast<double>(t)));
      weight.push_back(state.weight(i) * double{tensor.weight_decay_factor} -
                       learning_rate * corrected1 / (std::sqrt(corrected2) + kHyper.epsilon));
      momentum.push_back(m);
      root.push_back(std::sqrt(v));
    }
  }
  static double largest(const std::vector<double>& values, size_t group) {
    double result = 0;
    for (size_t i = group * kGroup; i < values.size() && i < (group + 1) * kGroup; ++i)
      result = std::max(result, std::fabs(values[i]));
    return result;
  }
};

/// Relative error of one rounding to the weight format.
double weight_precision(WeightFormat format) {
  switch (format) {
    case WeightFormat::kSplit24:
      return 0x1p-15;
    case WeightFormat::kBF16:
      return 0x1p-7;
    default:
      return 0x1p-23;
  }
}

TEST_P(AdamWFormats, AStepAgreesWithFP64WithinTheFormatsPrecision) {
  AdamWState state(GetParam(), 4000);
  state.fill(11, 16);
  constexpr double kRate = 1e-2;
  for (uint64_t t = 1; t <= 3; ++t) {
    const AdamWTensor tensor = state.tensor();
    const Reference reference(state, tensor, t, kRate);
    ASSERT_EQ(cpu::update_loops().adamw(tensor, factors_at(t, GetParam().rounding, kRate), 0, 4000),
              0);
    const bool codes = GetParam().state == StateFormat::kCompanded;
    for (size_t i = 0; i < state.size(); ++i) {
      const double x = reference.weight[i];
      // A step of AdamW is at most ~sqrt(1 / (1 - beta2)) learning rates; fp32 loses a few ulp of
      // it.
      ASSERT_NEAR(state.weight(i), x, std::fabs(x) * weight_precision(GetParam().weight) + 1e-6)
          << i;
      const double m_scale = Reference::largest(reference.momentum, i / kGroup);
      const double z_scale = Reference::largest(reference.root, i / kGroup);
      const double m = reference.momentum[i], z = reference.root[i];
      const double u = m_scale > 0 ? std::fabs(m) / m_scale : 0;
      const double m_limit =
          codes ? m_scale * (1 + u) * (1 + u) / 508 * 1.02 + 0x1p-60 : m_scale * 1e-6;
      const double z_limit = codes ? z_scale / 255 * 1.01 + 0x1p-60 : z_scale * 1e-6;
      ASSERT_NEAR(state.momentum(i), m, m_limit) << i;
      ASSERT_NEAR(state.root(i), z, z_limit) << i;
      if (codes && z > 0) {
        ASSERT_GT(state.variance8[i], 0) << i;
      }
    }
  }
}

TEST(AdamWCompanded, TheVarianceForgetsAsFastAsInFP64) {
  // A long average: no step moves a root by as much as half a code. Gradients fall to a tenth half
  // way.
  constexpr size_t kCount = 1024;
  constexpr uint64_t kSteps = 6000;
  const AdamWHyperparameters hyper{.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8};
  AdamWState state({}, kCount);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> noise(-1.0f, 1.0f);
  std::vector<double> variance(kCount), deviation(kCount);
  for (double& d : deviation) d = std::exp(0.5 * noise(random));
  const auto mean_ratio = [&] {
    double sum = 0;
    for (size_t i = 0; i < kCount; ++i) sum += state.root(i) / std::sqrt(variance[i]);
    return sum / kCount;
  };
  for (uint64_t t = 1; t <= kSteps; ++t) {
    for (size_t i = 0; i < kCount; ++i) {
      const double size = deviation[i] * (t > kSteps / 2 ? 0.1 : 1.0);
      state.set_gradient(i, static_cast<float>(size) * noise(random));
      const double g = state.gradient(i);
      variance[i] = variance[i] * 0.999 + g * g * 0.001;
    }
    const AdamWFactors factors = make_adamw_factors(hyper, 1e-3, 1.0, Rounding::kStochastic, t);
    cpu::update_loops().adamw(state.tensor(), factors, 0, kCount);
    if (t == kSteps / 2) {
      EXPECT_NEAR(mean_ratio(), 1.0, 0.02);
    }
  }
  EXPECT_NEAR(mean_ratio(), 1.0, 0.02);
}

TEST(AdamWFP32, FollowsPyTorchOverTenSteps) {
  constexpr size_t kCount = 333, kSteps = 10;
  std::vector<float> golden(kCount * (1 + 4 * kSteps));
  std::ifstream file(FLASHSHARD_TEST_DATA "/kernels/numerics/golden/adamw_fp32.bin",
                     std::ios::binary);
  ASSERT_TRUE(file.read(reinterpret_cast<char*>(golden.data()),
                        static_cast<std::streamsize>(golden.size() * sizeof(float))));
  const auto part = [&](size_t index, size_t i) { return golden[index * kCount + i]; };
  AdamWState state({WeightFormat::kFP32, StateFormat::kFP32, DType::kFP32, Rounding::kNearest},
                   kCount);
  for (size_t i = 0; i < kCount; ++i) state.set_weight(i, part(0, i));
  for (size_t step = 0; step < kSteps; ++step) {
    for (size_t i = 0; i < kCount; ++i) state.set_gradient(i, part(1 + 4 * step, i));
    AdamWTensor tensor = state.tensor();
    tensor.weight_decay_factor = static_cast<float>(1.0 - 3e-3 * 0.1);
    const AdamWFactors factors =
        make_adamw_factors(kHyper, 3e-3, 1.0, Rounding::kNearest, step + 1);
    cpu::adamw({&tensor, 1}, factors, serial);
    for (size_t i = 0; i < kCount; ++i) {
      const float x = part(2 + 4 * step, i), m = part(3 + 4 * step, i), v = part(4 + 4 * step, i);
      ASSERT_NEAR(state.weight(i), x, 2e-6 * std::fabs(x) + 1e-8) << "step " << step << " at " << i;
      ASSERT_NEAR(state.momentum32[i], m, 1e-6 * std::fabs(m) + 1e-9 * 64) << i;
      ASSERT_NEAR(state.variance32[i], v, 2e-6 * std::fabs(v)) << i;
    }
  }
}

// ---- what must never enter a state ----

TEST_P(AdamWFormats, AGroupWithABadGradientStaysAsItWasAndIsCounted) {
  const float bad_gradients[] = {std::numeric_limits<float>::quiet_NaN(),
                                 std::numeric_limits<float>::infinity(),
                                 -std::numeric_limits<float>::infinity(), 3e38f};
  for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
    for (float bad : bad_gradients) {
      for (size_t position : {size_t{37}, size_t{640}, size_t{1001}}) {
        AdamWState clean(GetParam(), 1003);
        clean.fill(21, 8);
        AdamWState state = clean;
        state.set_gradient(position, bad);
        const AdamWState before = state;
        const AdamWFactors factors = factors_at(2, GetParam().rounding);
        ASSERT_EQ(loops->adamw(clean.tensor(), factors, 0, 1003), 0);
        ASSERT_EQ(loops->adamw(state.tensor(), factors, 0, 1003), 1) << bad;
        const size_t group = position / kGroup;
        for (size_t i = 0; i < state.size(); ++i) {
          AdamWState unchanged = before;
          AdamWState& expected = i / kGroup == group ? unchanged : clean;
          ASSERT_EQ(state.weight(i), expected.weight(i)) << i;
          ASSERT_EQ(state.momentum(i), expected.momentum(i)) << i;
          ASSERT_EQ(state.root(i), expected.root(i)) << i;
          if (i % kGroup == 0) i += 30;  // the ends of each group are enough
        }
      }
    }
  }
}

TEST_P(AdamWFormats, AWeightLeavingTheDomainLeavesItsGroupAsItWas) {
  AdamWState state(GetParam(), 96);
  state.fill(3, 4);
  for (size_t i = 32; i < 64; ++i) {
    state.set_weight(i, 1.0f);
    state.set_gradient(i, 0.0f);
    state.momentum8[i] = 0;
    state.momentum32[i] = 0.0f;
  }
  state.set_weight(50, 0x1.fcp127f);
  const AdamWState before = state;
  AdamWTensor tensor = state.tensor();
  tensor.weight_decay_factor = 1.25f;
  const AdamWFactors factors = factors_at(4, GetParam().rounding);
  cpu::adamw({&tensor, 1}, factors, serial);
  EXPECT_EQ(state.rejected_groups, 1);
  AdamWState unchanged = before;
  for (size_t i = 32; i < 64; ++i) {
    EXPECT_EQ(state.weight(i), unchanged.weight(i));
    EXPECT_EQ(state.root(i), unchanged.root(i));
  }
  EXPECT_NE(state.root(0), unchanged.root(0));
}

TEST_P(AdamWFormats, AMomentBeyondTheLargestScaleIsRejectedThoughTheWeightIsFine) {
  AdamWState state(GetParam(), 32);
  for (size_t i = 0; i < 32; ++i) state.set_weight(i, 1.0f);
  state.set_gradient(5, 0x1p70f);  // squares to infinity; the weight would not move
  AdamWTensor tensor = state.tensor();
  cpu::adamw({&tensor, 1}, factors_at(1, GetParam().rounding), serial);
  EXPECT_EQ(state.rejected_groups, 1);
  EXPECT_EQ(state.momentum(5), 0.0f);
  EXPECT_EQ(state.root(5), 0.0f);
}

TEST_P(AdamWFormats, AFreshStateWithoutGradientsOnlyDecays) {
  AdamWState state(GetParam(), 77);
  for (size_t i = 0; i < state.size(); ++i) state.set_weight(i, 1.0f);
  AdamWTensor tensor = state.tensor();
  tensor.weight_decay_factor = 0.5f;
  cpu::adamw({&tensor, 1}, factors_at(1, GetParam().rounding), serial);
  for (size_t i = 0; i < state.size(); ++i) {
    EXPECT_EQ(state.weight(i), 0.5f);
    EXPECT_EQ(state.momentum(i), 0.0f);
    EXPECT_EQ(state.root(i), 0.0f);
  }
  for (size_t g = 0; g < state.groups(); ++g) {
    EXPECT_EQ(state.momentum_scale[g], numerics::kSmallestScaleCode);
    EXPECT_EQ(state.variance_scale[g], numerics::kSmallestScaleCode);
  }
}

TEST(AdamW, ManyTensorsOfUnequalSizesAreUpdatedInOneCall) {
  std::vector<AdamWState> states, expected;
  std::vector<AdamWTensor> tensors;
  for (int64_t count : {1, 33, 20000, 0, 512, 16384, 40}) {
    states.emplace_back(AdamWFormat{}, count);
    states.back().fill(static_cast<uint64_t>(count), 10);
  }
  expected = states;
  const AdamWFactors factors = factors_at(1, Rounding::kStochastic);
  for (AdamWState& state : expected)
    cpu::update_loops().adamw(state.tensor(), factors, 0, static_cast<int64_t>(state.size()));
  for (AdamWState& state : states) tensors.push_back(state.tensor());
  cpu::adamw(tensors, factors, [](int64_t count, const auto& body) {
    for (int64_t i = 0; i < count; i += 2) body(i, std::min(i + 2, count));
  });
  for (size_t i = 0; i < states.size(); ++i) EXPECT_TRUE(states[i] == expected[i]) << i;
}

// ---- constants of a step ----

TEST(AdamWFactors, AreComputedInFP64AndRoundedOnce) {
  const AdamWFactors f = make_adamw_factors({.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8}, 3e-4,
                                            0.125, Rounding::kNearest, 3);
  EXPECT_EQ(f.beta1, 0.9f);
  EXPECT_EQ(f.one_minus_beta1, static_cast<float>(1.0 - 0.9));
  EXPECT_NE(f.one_minus_beta2, 1.0f - 0.999f) << "not from the rounded beta";
  EXPECT_EQ(f.step_size, static_cast<float>(3e-4 / (1.0 - std::pow(0.9, 3))));
  EXPECT_EQ(f.inverse_sqrt_correction, static_cast<float>(1 / std::sqrt(1 - std::pow(0.999, 3))));
  EXPECT_EQ(f.gradient_factor, 0.125f);
  EXPECT_EQ(f.t, 3u);
}

TEST(AdamWFactors, RefuseValuesThatNoUpdateCanUse) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto make = [](AdamWHyperparameters hyper, double rate, double factor, uint64_t t) {
    return make_adamw_factors(hyper, rate, factor, Rounding::kNearest, t);
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

}  // namespace
}  // namespace flashshard
