// AdamA: gradients that go into the moments round by round leave what the formula has in fp64, the
// same bits at every stage, and AdamW where there is one round.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "tests/optim/synthetic_run.h"

namespace flashshard {
namespace {

using namespace test;

TEST(IntoMoments, OneRoundIsAdamW) {
  for (int world_size : {1, 3}) {
    const RunShape one = into_moments(world_size, 2, 1);
    RunShape adamw = one;
    adamw.sharding.accumulator = AccumulatorFormat::kFP32;
    const Result expected = run(adamw, gradient_value), result = run(one, gradient_value);
    EXPECT_TRUE(result.state == expected.state);
    EXPECT_EQ(result.seen, expected.seen);
    EXPECT_EQ(result.last.gradient_norm, expected.last.gradient_norm);
  }
}

TEST(IntoMoments, EndsWithTheSameBitsAtEveryStageAndInGroups) {
  for (auto weight : {WeightFormat::kSplit24, WeightFormat::kBF16}) {
    for (int world_size : {1, 4}) {
      RunShape shape = into_moments(world_size, 0, 3);
      shape.micro_batches -= world_size / 2;  // the last round has ranks without one
      shape.weight = weight;
      const Result reference = run(shape, gradient_value);
      EXPECT_TRUE(reference.last.applied);
      for (const auto& [stage, group] :
           std::vector<std::pair<int, int>>{{2, 0}, {3, 0}, {2, 2}, {3, 1}}) {
        shape.sharding.stage = stage;
        shape.sharding.group = std::min(group, world_size);
        const Result result = run(shape, gradient_value);
        EXPECT_TRUE(result.state == reference.state) << stage << " " << group;
        EXPECT_EQ(result.seen, reference.seen) << stage << " " << group;
      }
    }
  }
}

/// Two steps of AdamA in fp64 on one element of the matrix `tensor`.
struct Reference {
  double weight = 0, momentum = 0, variance = 0;
};
Reference reference_of(const RunShape& setup, int tensor, int64_t element) {
  constexpr double kBeta1 = 0.9, kBeta2 = 0.95, kEpsilon = 1e-8, kRate = 1e-2, kDecay = 0.1;
  Reference r;
  r.weight = 0.01f * gradient_value(99, 0, tensor, element);
  const int64_t ranks = setup.world_size, rounds = setup.micro_batches / ranks;
  for (int step = 0; step < setup.steps; ++step) {
    r.momentum *= kBeta1;
    r.variance *= kBeta2;
    for (int64_t k = 0; k < rounds; ++k) {
      double g = 0;
      for (int64_t p = 0; p < ranks; ++p) {
        g += gradient_value(step, k * ranks + p, tensor, element);
      }
      g /= static_cast<double>(setup.micro_batches * setup.tokens);
      r.momentum += (1 - kBeta1) * g;
      r.variance += (1 - kBeta2) * g * g;
    }
    const double m = r.momentum / (1 - std::pow(kBeta1, step + 1));
    const double v = r.variance / (1 - std::pow(kBeta2, step + 1));
    r.weight = r.weight * (1 - kRate * kDecay) - kRate * m / (std::sqrt(v) + kEpsilon);
  }
  return r;
}

TEST(IntoMoments, AreThoseOfTheFormulaInDoublePrecision) {
  constexpr int kTensor = 2;
  for (int world_size : {1, 2}) {
    RunShape setup = into_moments(world_size, 3, 4);
    setup.weight = WeightFormat::kFP32;
    const Result result = run(setup, gradient_value);
    const auto values = [&](const char* state) {
      const std::string& bytes = result.state.at({kTensor, state});
      std::vector<float> all(bytes.size() / sizeof(float));
      std::memcpy(all.data(), bytes.data(), bytes.size());
      return all;
    };
    const auto weights = values("weight"), momenta = values("momentum"),
               variances = values("variance");
    ASSERT_EQ(weights.size(), 70u * 48u);
    for (size_t i = 0; i < weights.size(); ++i) {
      const Reference r = reference_of(setup, kTensor, static_cast<int64_t>(i));
      const double scale = std::sqrt(r.variance);
      EXPECT_NEAR(momenta[i], r.momentum, 1e-5 * scale) << i;
      EXPECT_NEAR(variances[i], r.variance, 1e-5 * r.variance) << i;
      EXPECT_NEAR(weights[i], r.weight, 1e-5 * (std::abs(r.weight) + 1e-2)) << i;
    }
  }
}

TEST(IntoMoments, ARoundThatIsNotFiniteCountsForNothing) {
  run_ranks(2, [](Communicator& communicator) {
    const RunShape setup = into_moments(2, 2, 3);
    Rank rank(communicator, setup), without(communicator, setup);
    const auto value = [](int64_t m, int t, int64_t i) { return gradient_value(0, m, t, i); };
    for (const int64_t bad : {1, 3, 5}) {  // in each round
      const StepOutcome outcome = rank.step(
          [&](int64_t m, int t, int64_t i) { return m == bad ? std::nanf("") : value(m, t, i); });
      EXPECT_TRUE(outcome.applied);
      EXPECT_EQ(outcome.skipped_buckets,
                static_cast<int64_t>(rank.optimizer().buckets().buckets().size()));
      // The round's other half is lost too.
      (void)without.step(
          [&](int64_t m, int t, int64_t i) { return m / 2 == bad / 2 ? 0.0f : value(m, t, i); });
      rank.optimizer().finish_gathers();
      without.optimizer().finish_gathers();
      EXPECT_TRUE(bytes_of_shard(rank.state()) == bytes_of_shard(without.state())) << bad;
    }
    // Of a step without a finite round nothing is left.
    const std::string before = bytes_of_shard(rank.state());
    const auto nothing = rank.step([](int64_t, int, int64_t) { return std::nanf(""); });
    EXPECT_FALSE(nothing.applied);
    EXPECT_TRUE(bytes_of_shard(rank.state()) == before);
    EXPECT_EQ(rank.optimizer().updates(), 3u);
  });
}

}  // namespace
}  // namespace flashshard
