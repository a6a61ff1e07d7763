// What only the CPU can show of the CUDA kernels: how calls become launches, that a kernel of one
// combination is the general one, and that quotients and roots refined from approximations are
// correctly rounded whichever way the approximation errs.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/error.h"
#include "tests/kernels/cuda/emulated_lanes.h"
#include "tests/kernels/numerics/update_state.h"

namespace flashshard::cuda {
namespace {

#define FLASHSHARD_FORMULA inline
#include "kernels/cuda/refined_quotients.inc"
#undef FLASHSHARD_FORMULA

constexpr auto kFma = [](float a, float b, float c) { return std::fma(a, b, c); };

/// The correctly rounded value moved by so many units in the last place.
float approximate(double exact, int error) {
  float value = static_cast<float>(exact);
  for (; error > 0; --error) value = std::nextafter(value, std::numeric_limits<float>::infinity());
  for (; error < 0; ++error) value = std::nextafter(value, 0.0f);
  return value;
}

/// With an exponent from `least` to below `most`.
float number(std::mt19937_64& random, int least, int most) {
  const auto mantissa = static_cast<float>(random() >> 40) * 0x1p-24f + 1.0f;
  const auto span = static_cast<uint64_t>(most - least);
  return std::ldexp(mantissa, least + static_cast<int>(random() % span));
}

TEST(CorrectedQuotient, OfAGroupsMembersByItsLargestIsCorrectlyRounded) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 300000; ++i) {
    const float unit = number(random, -40, 16);
    const float member = unit * (static_cast<float>(random() >> 40) * 0x1p-24f);
    const float m = i % 2 == 0 ? member : std::ldexp(member, -static_cast<int>(random() % 60));
    ASSERT_EQ(corrected_quotient(m, unit, 1.0f / unit, kFma), m / unit) << m << " " << unit;
  }
}

TEST(RefinedQuotient, IsCorrectlyRoundedForEveryCode) {
  for (int error : {-1, 0, 1}) {
    for (int code = -127; code <= 127; ++code) {
      const float q = static_cast<float>(code), divisor = 254.0f - std::fabs(q);
      ASSERT_EQ(refined_quotient(q, divisor, approximate(1.0 / divisor, error), kFma), q / divisor);
    }
  }
}

TEST(RefinedQuotient, OfADivisorWhoseMantissaIsAllOnesIsAUnitOffAtMostForPowersOfTwo) {
  for (int exponent = -60; exponent <= 60; ++exponent) {
    const float b = std::ldexp(0x1.fffffep+0f, exponent);
    for (int error : {-1, 0, 1}) {
      for (uint32_t mantissa = 0; mantissa < 1 << 23; mantissa += mantissa < 100 ? 1 : 9973) {
        const float a = std::bit_cast<float>(0x3f800000u | mantissa);
        const float quotient = refined_quotient(a, b, approximate(1.0 / b, error), kFma);
        if (mantissa == 0) {
          ASSERT_LE(std::nextafter(quotient, 0.0f), a / b);
          ASSERT_GE(std::nextafter(quotient, 1e30f), a / b);
        } else {
          ASSERT_EQ(quotient, a / b) << a << " " << b;
        }
      }
    }
  }
}

TEST(RefinedQuotient, ThatIsAUnitOffChangesNoCode) {
  for (int shift = 0; shift <= 40; ++shift) {
    // V1: a power of two against a group's largest member, which is all ones.
    const float unit = 0x1.fffffep+0f, member = std::ldexp(1.0f, -shift), exact = member / unit;
    for (const float u : {std::nextafter(exact, 0.0f), std::nextafter(exact, 1.0f)}) {
      const auto momentum_code = [](float x) { return std::floor(127 * (2 * x / (1 + x)) + 0.5f); };
      EXPECT_EQ(momentum_code(u), momentum_code(exact)) << shift;
      EXPECT_EQ(std::floor(u * 255 + 0.5f), std::floor(exact * 255 + 0.5f)) << shift;
    }
  }
  // V2: a scale of 8 bits and a momentum, of which 254 times is a power of two, never are all ones
  // together.
  for (uint32_t mantissa = 0; mantissa < 256; ++mantissa) {
    const float scale = std::bit_cast<float>(0x3f800000u | mantissa << 15);
    for (int shift = -8; shift <= 40; ++shift) {
      const float near = std::ldexp(1.0f / 254.0f, -shift);
      for (const float m : {std::nextafter(near, 0.0f), near, std::nextafter(near, 1e30f)}) {
        if (254.0f * m != std::ldexp(1.0f, -shift)) continue;
        EXPECT_NE(std::bit_cast<uint32_t>(scale + m) & 0x7fffffu, 0x7fffffu) << scale << " " << m;
      }
    }
  }
}

TEST(RefinedQuotient, IsCorrectlyRoundedOverTheDomain) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 300000; ++i) {
    const float b = number(random, -64, 64), a = std::min(number(random, -102, 80), 0x1p60f * b);
    for (int error : {-1, 0, 1}) {
      ASSERT_EQ(refined_quotient(a, b, approximate(1.0 / b, error), kFma), a / b) << a << " " << b;
    }
  }
}

TEST(RefinedQuotient, OfANumberBelowTheDomainStaysNearZero) {
  for (float a : {0x1p-103f, 0x1p-126f, 0x1p-149f, -0x1.8p-140f}) {
    for (float b : {0x1p-60f, 0x1.8p-60f}) {
      EXPECT_LT(std::fabs(refined_quotient(a, b, 1.0f / b, kFma)), 0x1p-40f);
    }
  }
  EXPECT_EQ(refined_quotient(0.0f, 0x1p-60f, 0x1p60f, kFma), 0.0f);
}

TEST(RefinedRoot, IsCorrectlyRoundedFromZeroToTheLargestNumber) {
  std::mt19937_64 random(2);
  const auto check = [](float x) {
    for (int error : {-1, 0, 1}) {
      const auto reciprocal_root = [&](float v) {
        return v == 0 ? 0x1p100f : approximate(1.0 / std::sqrt(double{v}), error);
      };
      ASSERT_EQ(refined_root(x, kFma, reciprocal_root), std::sqrt(x)) << x << " error " << error;
    }
  };
  for (uint32_t bits = 0; bits < 0x7f800000u; bits += 4001) check(std::bit_cast<float>(bits));
  for (uint32_t bits = 0; bits < 3000; ++bits) check(std::bit_cast<float>(bits));
  for (uint32_t bits = 0x3f800000u; bits < 0x40800000u; bits += 61)
    check(std::bit_cast<float>(bits));
}

TEST(RefinedRoot, OfWhatHasNoneIsNotANumber) {
  const auto reciprocal_root = [](float v) { return 1.0f / std::sqrt(v); };
  for (float x :
       {-1.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_TRUE(std::isnan(refined_root(x, kFma, reciprocal_root))) << x;
  }
}

// ---- launches ----

UpdateFactors adamw() {
  return make_update_factors(Rule::kAdamW, {}, 1e-3, 1, Rounding::kStochastic, 1);
}

TEST(UpdateLaunches, OneServesAllAlignedTensorsOfOneFormat) {
  std::vector<UpdateState> states;
  std::vector<UpdateTensor> tensors;
  for (int i = 1; i <= kMostRuns; ++i) states.emplace_back(rule_cases()[0], UpdateFormat{}, 32 * i);
  for (UpdateState& state : states) tensors.push_back(state.tensor());
  const auto launches = plan_updates(tensors, adamw());
  ASSERT_EQ(launches.size(), 1u);
  EXPECT_TRUE(launches[0].wide);
  EXPECT_EQ(launches[0].table.runs, kMostRuns);
  EXPECT_EQ(launches[0].table.run[kMostRuns - 1].end_tile, launches[0].table.tiles);
  tensors.push_back(tensors[0]);
  EXPECT_EQ(plan_updates(tensors, adamw()).size(), 2u) << "a table is full";
}

TEST(UpdateLaunches, ShortGroupsAndOddAddressesGoToTheNarrowKernel) {
  UpdateState ending_short(rule_cases()[0], {}, 70), odd(rule_cases()[0], {}, 64, 0, 1);
  const UpdateTensor tensors[] = {ending_short.tensor(), odd.tensor()};
  const auto launches = plan_updates(tensors, adamw());
  ASSERT_EQ(launches.size(), 2u);
  EXPECT_TRUE(launches[0].wide);
  EXPECT_EQ(launches[0].table.run[0].count, 64u);
  EXPECT_FALSE(launches[1].wide);
  ASSERT_EQ(launches[1].table.runs, 2);
  EXPECT_EQ(launches[1].table.run[0].count, 6u);
  EXPECT_EQ(launches[1].table.run[1].count, 64u);
}

TEST(UpdateLaunches, FormatsAreNotMixedAndRareCombinationsAreNarrow) {
  UpdateState split(rule_cases()[0], {}, 64);
  UpdateState exact(rule_cases()[0], {WeightFormat::kSplit32, StateFormat::kFP32}, 64);
  UpdateState rare(rule_cases()[0], {WeightFormat::kCorrected24, StateFormat::kCompanded}, 64);
  const UpdateTensor tensors[] = {split.tensor(), exact.tensor(), rare.tensor(), split.tensor()};
  const auto launches = plan_updates(tensors, adamw());
  ASSERT_EQ(launches.size(), 3u);
  EXPECT_EQ(launches[0].table.runs, 2);
  EXPECT_TRUE(launches[1].wide);
  EXPECT_FALSE(launches[2].wide);
}

TEST(UpdateLaunches, ALongTensorIsCutIntoRuns) {
  UpdateTensor tensor;
  tensor.count = 3 * kRunSpan + 96;
  tensor.first_element = 64;
  const auto launches = plan_updates({&tensor, 1}, adamw());
  ASSERT_EQ(launches.size(), 1u);
  ASSERT_EQ(launches[0].table.runs, 4);
  EXPECT_EQ(launches[0].table.run[0].count, kRunSpan - 64);
  EXPECT_EQ(launches[0].table.run[3].count, 160u);
}

TEST(UpdateLaunches, AskForNoHealthCounters) {
  UpdateHealth health;
  UpdateTensor tensor;
  tensor.health = &health;
  EXPECT_THROW(plan_updates({&tensor, 1}, adamw()), Error);
}

TEST(UpdateLaunches, AKernelOfOneCombinationComputesWhatTheGeneralOneDoes) {
  using Fixed =
      emulation::FixedChoice<Family::kAdam, StateFormat::kCompanded, WeightFormat::kSplit24>;
  UpdateState state(rule_cases()[0], {}, 640);
  state.fill(3, 30);
  UpdateState general = state;
  const UpdateTensor tensor = state.tensor(), general_tensor = general.tensor();
  emulation::run_update<kWide, Fixed>(plan_updates({&tensor, 1}, adamw())[0].table);
  emulation::update({&general_tensor, 1}, adamw());
  EXPECT_TRUE(state == general);
}

}  // namespace
}  // namespace flashshard::cuda
