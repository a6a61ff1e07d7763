// ZeRO as behaviour: any stage, world size, bucket size and format does to weights and states what
// one rank does that is given the folded gradient; a step with a non-finite gradient does nothing
// at all.
#include "optim/sharded_optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "optim/legality.h"
#include "tests/optim/synthetic_run.h"

namespace flashshard {
namespace {

using namespace test;

/// What rank `rank` sends in round k: a micro-batch's gradient, or the sum of all it has, rounded
/// for the wire.
float contribution(const RunShape& setup, int step, int64_t k, int rank, int tensor,
                   int64_t element) {
  const auto value = [&](int64_t m) { return gradient_value(step, m, tensor, element); };
  const int64_t ranks = setup.world_size;
  if (!setup.sharding.local_sums) return value(k * ranks + rank);
  float sum = value(rank);
  for (int64_t m = rank + ranks; m < setup.all_micro_batches(); m += ranks) sum += value(m);
  const bool rounds = ranks > 1 && setup.model() == DType::kBF16;
  return rounds ? bf16_to_float(float_to_bf16(sum)) : sum;
}

/// What the reduction makes of a step's gradients on `setup`'s ranks, in fp32: round by round a
/// left fold over ranks, or over the left folds of groups of ranks.
float folded(const RunShape& setup, int step, int tensor, int64_t element) {
  const int64_t count = setup.all_micro_batches();
  const int group = std::max(setup.group, 1);
  std::optional<float> sum;
  for (int64_t k = 0; k * setup.world_size < count; ++k) {
    const auto ranks =
        static_cast<int>(std::min<int64_t>(setup.world_size, count - k * setup.world_size));
    for (int first = 0; first < ranks; first += group) {
      float partial = contribution(setup, step, k, first, tensor, element);
      for (int r = first + 1; r < std::min(first + group, ranks); ++r) {
        partial += contribution(setup, step, k, r, tensor, element);
      }
      sum = sum ? *sum + partial : partial;
    }
    if (setup.sharding.local_sums) break;
  }
  return *sum;
}

/// One rank at stage 1 that is given the whole sum.
RunShape alone(const RunShape& setup) {
  RunShape one = setup;
  one.world_size = 1;
  one.micro_batches = 1;
  one.bucket_bytes = 64 << 20;
  one.tokens = setup.tokens * setup.all_micro_batches();
  one.group = 0;
  one.sharding = {};
  one.sharding.clips = setup.sharding.clips;
  one.sharding.clip = setup.sharding.clip;
  const GradientFormat format{setup.sharding, setup.model()};
  one.sharding.local_sums = format.reduced(setup.world_size) == DType::kFP32;
  return one;
}

class Trained : public testing::TestWithParam<RunShape> {};

TEST_P(Trained, EqualsOneRankWithTheFoldedGradientBitForBit) {
  const RunShape setup = GetParam();
  const Result sharded = run(setup, gradient_value);
  const Result reference =
      run(alone(setup), [&](int s, int64_t, int t, int64_t i) { return folded(setup, s, t, i); });
  EXPECT_EQ(reference.last.clip_coefficient < 1, setup.sharding.clips);
  EXPECT_EQ(sharded.last.clip_coefficient, reference.last.clip_coefficient);
  EXPECT_EQ(sharded.last.gradient_norm, reference.last.gradient_norm);
  EXPECT_EQ(sharded.last.tokens, reference.last.tokens);
  EXPECT_TRUE(sharded.state == reference.state);
  for (const auto& seen : sharded.seen) EXPECT_TRUE(seen == reference.seen[0]);
}

/// Every combination that the table of refusals leaves, but clipping by buckets, at every world
/// size.
std::vector<RunShape> legal_combinations() {
  std::vector<RunShape> shapes;
  for (int world_size : {1, 2, 3, 4, 8}) {
    for (int bits = 0; bits < 256; ++bits) {
      RunShape shape{.world_size = world_size, .bucket_bytes = 4096};
      Sharding& sharding = shape.sharding;
      sharding.stage = bits & 3;
      sharding.reduce = bits & 4 ? ReduceTime::kEach : ReduceTime::kLast;
      sharding.local_sums = (bits & 8) != 0;
      sharding.fp32_reduced_gradient = (bits & 16) != 0;
      sharding.release = sharding.skips_buckets = (bits & 32) != 0;
      sharding.clips = (bits & 64) != 0;
      sharding.clip = bits & 128 ? ClipMode::kPrevious : ClipMode::kGlobal;
      if (sharding.has_accumulator() && sharding.local_sums) continue;
      if (!sharding.clips && bits & 128) continue;
      // Without release the way of clipping is the same code at any world size.
      const bool clips_globally = sharding.clips && sharding.clip == ClipMode::kGlobal;
      if (!sharding.release && !clips_globally && world_size != 3) continue;
      if (sharding.has_accumulator()) shape.micro_batches = 2 * world_size + 1;
      if (sharding.local_sums) shape.micro_batches = 2 * world_size;
      shape.tied = (bits + world_size) % 2 == 0;
      if (refusal_of(sharding) == nullptr) shapes.push_back(shape);
    }
  }
  return shapes;
}
INSTANTIATE_TEST_SUITE_P(Legal, Trained, testing::ValuesIn(legal_combinations()));

INSTANTIATE_TEST_SUITE_P(
    Worlds, Trained,
    testing::Values(
        RunShape{.world_size = 3}, RunShape{.world_size = 4, .bucket_bytes = 100},
        RunShape{.world_size = 7},
        RunShape{.world_size = 2, .state = StateFormat::kFP32, .weight = WeightFormat::kSplit32},
        RunShape{.world_size = 3, .state = StateFormat::kFP32, .weight = WeightFormat::kBF16},
        RunShape{.world_size = 3, .state = StateFormat::kFP32, .weight = WeightFormat::kFP32},
        RunShape{.world_size = 3,
                 .state = StateFormat::kFP32,
                 .weight = WeightFormat::kFP32,
                 .sharding = {.stage = 3, .reduce = ReduceTime::kEach},
                 .micro_batches = 7},
        RunShape{.world_size = 4, .micro_batches = 3},
        RunShape{.world_size = 3, .sharding = {.stage = 0}, .micro_batches = 1},
        RunShape{.world_size = 4, .group = 2},
        RunShape{.world_size = 5, .bucket_bytes = 3000, .sharding = {.stage = 3}, .group = 2},
        RunShape{.world_size = 4, .sharding = {.local_sums = true}, .micro_batches = 8, .group = 3},
        RunShape{.world_size = 5,
                 .bucket_bytes = 3000,
                 .sharding = {.stage = 2, .reduce = ReduceTime::kEach},
                 .micro_batches = 12,
                 .group = 2},
        RunShape{.world_size = 4, .micro_batches = 3, .group = 3},
        RunShape{.world_size = 3, .bucket_bytes = 100, .sharding = {.stage = 2}},
        RunShape{.world_size = 4, .sharding = {.stage = 3}, .micro_batches = 3}));

/// Hybrid sharding: every way of reducing in groups of every size, in both orders.
std::vector<RunShape> divided_in_groups() {
  std::vector<RunShape> shapes;
  for (const auto& [world_size, group] :
       std::vector<std::pair<int, int>>{{2, 1}, {4, 1}, {4, 2}, {8, 2}, {8, 4}, {6, 3}}) {
    for (int bits = 0; bits < 32; ++bits) {
      RunShape shape{.world_size = world_size, .bucket_bytes = 4096};
      Sharding& sharding = shape.sharding;
      sharding.group = group;
      sharding.stage = 1 + (bits & 3);
      if (sharding.stage > 3) continue;
      sharding.reduce = bits & 4 ? ReduceTime::kEach : ReduceTime::kLast;
      sharding.release = sharding.skips_buckets = (bits & 8) != 0;
      if (sharding.release) sharding.clip = ClipMode::kPrevious;
      if (sharding.has_accumulator()) shape.micro_batches = 2 * world_size + 1;
      shape.group = bits & 16 ? group + group % 2 : 0;  // of the order: FLAT, or groups of its own
      shape.tied = bits % 3 == 0;
      if (refusal_of(sharding) == nullptr) shapes.push_back(shape);
    }
  }
  shapes.push_back({.world_size = 4,
                    .sharding = {.group = 2, .local_sums = true},
                    .micro_batches = 8,
                    .tied = true});
  shapes.push_back(
      {.world_size = 4, .sharding = {.stage = 2, .group = 2, .fp32_reduced_gradient = true}});
  shapes.push_back({.world_size = 4,
                    .state = StateFormat::kFP32,
                    .weight = WeightFormat::kFP32,
                    .sharding = {.stage = 3, .group = 2},
                    .micro_batches = 3});
  return shapes;
}
INSTANTIATE_TEST_SUITE_P(Groups, Trained, testing::ValuesIn(divided_in_groups()));

class Replicas : public testing::TestWithParam<RunShape> {};

TEST_P(Replicas, EndWithTheSameStates) {
  const RunShape setup = GetParam();
  const Result result = run(setup, gradient_value);
  for (int r = 0; r < setup.world_size; ++r) {
    const ShardPlacement placement(setup.sharding, setup.world_size, r);
    const auto first = static_cast<size_t>(r % placement.group());
    EXPECT_TRUE(result.held[static_cast<size_t>(r)] == result.held[first]) << r;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Stages, Replicas,
    testing::Values(RunShape{.world_size = 3, .sharding = {.stage = 0}},
                    RunShape{.world_size = 4, .sharding = {.stage = 1, .group = 2}},
                    RunShape{.world_size = 8, .sharding = {.stage = 3, .group = 4}},
                    RunShape{.world_size = 4,
                             .sharding = {.stage = 2, .group = 2, .reduce = ReduceTime::kEach},
                             .micro_batches = 7},
                    RunShape{.world_size = 4, .sharding = {.stage = 3, .group = 1}}));

/// Every rule in every format of state, with masters of 24 and 32 bits and none.
std::vector<RunShape> rules_and_formats() {
  std::vector<RunShape> shapes;
  for (auto rule : {Rule::kAdamW, Rule::kAdam, Rule::kLion, Rule::kSGD, Rule::kSGDW}) {
    for (auto state : {StateFormat::kCompanded, StateFormat::kFlashOptim, StateFormat::kFP32}) {
      const bool v1 = state == StateFormat::kFlashOptim;
      for (auto weight :
           {v1 ? WeightFormat::kCorrected24 : WeightFormat::kSplit24,
            v1 ? WeightFormat::kCorrected32 : WeightFormat::kSplit32, WeightFormat::kBF16}) {
        shapes.push_back({.world_size = 3,
                          .bucket_bytes = 5000,
                          .rule = rule,
                          .state = state,
                          .weight = weight});
      }
    }
  }
  shapes.push_back({.world_size = 4, .rule = Rule::kSGDW, .beta1 = 0});
  return shapes;
}
INSTANTIATE_TEST_SUITE_P(Rules, Trained, testing::ValuesIn(rules_and_formats()));

TEST(ShardedOptimizer, TheNormIsThatOfTheMeanGradient) {
  RunShape setup;
  setup.world_size = 3;
  const Result result = run(setup, gradient_value);
  double squares = 0;
  const auto specs = parameters();
  for (size_t t = 0; t < specs.size(); ++t) {
    for (int64_t i = 0; i < specs[t].elements(); ++i) {
      const double g =
          bf16_to_float(float_to_bf16(folded(setup, setup.steps - 1, static_cast<int>(t), i)));
      squares += g * g;
    }
  }
  const double expected = std::sqrt(squares) / 30.0;
  EXPECT_NEAR(result.last.gradient_norm, expected, 1e-6 * expected);
  EXPECT_NEAR(result.last.clip_coefficient, 1.0 / expected, 1e-6 / expected);
  EXPECT_EQ(result.last.tokens, 30);
  EXPECT_TRUE(result.last.applied);
}

TEST(ShardedOptimizer, DoesNotScaleAGradientBelowTheLimitNorWithoutOne) {
  RunShape setup;
  setup.clip_norm = 1e9;
  EXPECT_EQ(run(setup, gradient_value).last.clip_coefficient, 1.0);
  setup.clip_norm = 0;
  EXPECT_EQ(run(setup, gradient_value).last.clip_coefficient, 1.0);
}

struct Injected {
  float value;
  Sharding sharding = {};
};
void PrintTo(const Injected& injected, std::ostream* out) {
  *out << injected.value << " at stage " << injected.sharding.stage
       << (injected.sharding.has_accumulator() ? " EACH" : "");
}
class NonFinite : public testing::TestWithParam<Injected> {};

TEST_P(NonFinite, GradientOnOneRankChangesNoByteOnAny) {
  RunShape setup{.world_size = 3, .sharding = GetParam().sharding};
  if (setup.sharding.has_accumulator()) setup.micro_batches = 7;
  run_ranks(3, [&](Communicator& communicator) {
    Rank rank(communicator, setup);
    const auto clean = [&](int64_t m, int t, int64_t i) { return gradient_value(0, m, t, i); };
    ASSERT_TRUE(rank.step(clean).applied);
    const auto snapshot = [&] {
      rank.evaluate();
      return rank.seen() + bytes_of_shard(rank.state());
    };
    const std::string before = snapshot();
    const StepOutcome outcome = rank.step([&](int64_t m, int t, int64_t i) {
      return m == 1 && t == 2 && i == 1234 ? GetParam().value : clean(m, t, i);
    });
    EXPECT_FALSE(outcome.applied);
    EXPECT_GE(outcome.nonfinite_groups, 1);
    EXPECT_TRUE(std::isinf(outcome.gradient_norm));
    EXPECT_TRUE(snapshot() == before);
    EXPECT_EQ(rank.optimizer().updates(), 1u);
    EXPECT_TRUE(rank.step(clean).applied);
    EXPECT_TRUE(snapshot() != before);
  });
}

INSTANTIATE_TEST_SUITE_P(Values, NonFinite,
                         testing::Values(Injected{std::nanf(""), {}}, Injected{INFINITY, {}},
                                         Injected{-INFINITY, {}}, Injected{0x1p60f, {}},
                                         Injected{-0x1p61f, {}}));
INSTANTIATE_TEST_SUITE_P(
    Stages, NonFinite,
    testing::Values(Injected{std::nanf(""), {.stage = 0}}, Injected{std::nanf(""), {.stage = 2}},
                    Injected{std::nanf(""), {.stage = 3}},
                    Injected{std::nanf(""), {.stage = 2, .group = 1}},
                    Injected{INFINITY, {.stage = 3, .group = 1, .reduce = ReduceTime::kEach}},
                    Injected{INFINITY, {.stage = 0, .reduce = ReduceTime::kEach}},
                    Injected{INFINITY, {.stage = 1, .reduce = ReduceTime::kEach}},
                    Injected{INFINITY, {.stage = 2, .reduce = ReduceTime::kEach}},
                    Injected{INFINITY, {.stage = 3, .reduce = ReduceTime::kEach}}));

class Released : public testing::TestWithParam<std::tuple<int, ReduceTime>> {};

RunShape released(int world_size, ReduceTime reduce, int stage) {
  RunShape shape{.world_size = world_size, .bucket_bytes = 3000};
  shape.sharding = {.stage = stage,
                    .reduce = reduce,
                    .release = true,
                    .clip = ClipMode::kBucket,
                    .skips_buckets = true};
  if (reduce == ReduceTime::kEach) shape.micro_batches = 2 * world_size + 1;
  return shape;
}

TEST_P(Released, BucketsClippedByTheirOwnNormsEndWithTheSameBitsAtEveryStage) {
  const auto [world_size, reduce] = GetParam();
  const Result reference = run(released(world_size, reduce, 0), gradient_value);
  EXPECT_LT(reference.last.clip_coefficient, 1);
  for (int stage : {2, 3, 12, 13}) {
    RunShape shape = released(world_size, reduce, stage % 10);
    if (stage > 10) shape.sharding.group = world_size % 2 == 0 ? world_size / 2 : 1;
    const Result result = run(shape, gradient_value);
    EXPECT_EQ(result.last.clip_coefficient, reference.last.clip_coefficient);
    EXPECT_EQ(result.last.gradient_norm, reference.last.gradient_norm);
    EXPECT_TRUE(result.state == reference.state) << stage;
    EXPECT_EQ(result.seen, reference.seen) << stage;
  }
}

TEST_P(Released, ANonFiniteGradientSkipsItsBucketOnAllRanksAndNoOther) {
  const auto [world_size, reduce] = GetParam();
  for (int stage : {0, 2, 3}) {
    const RunShape setup = released(world_size, reduce, stage);
    run_ranks(world_size, [&](Communicator& communicator) {
      Rank rank(communicator, setup);
      const auto snapshot = [&] {
        Bytes bytes;
        for (const auto& view : rank.state().shard_views()) {
          bytes[{view.tensor, view.state}].assign(reinterpret_cast<const char*>(view.bytes.data()),
                                                  view.bytes.size());
        }
        return bytes;
      };
      const auto first = [&](int64_t m, int t, int64_t i) { return gradient_value(0, m, t, i); };
      const auto clean = [&](int64_t m, int t, int64_t i) { return gradient_value(1, m, t, i); };
      ASSERT_TRUE(rank.step(first).applied);
      const Bytes before = snapshot();
      // The slices of tensor 4, all of them: a rank's own rows may lie in any.
      const StepOutcome outcome = rank.step([&](int64_t m, int t, int64_t i) {
        return m == 0 && t == 4 ? std::nanf("") : clean(m, t, i);
      });
      EXPECT_TRUE(outcome.applied);
      EXPECT_GE(outcome.skipped_buckets, 1);
      EXPECT_GE(outcome.nonfinite_groups, 1);
      EXPECT_TRUE(std::isfinite(outcome.gradient_norm));
      EXPECT_EQ(rank.optimizer().updates(), 2u);
      for (const auto& [key, bytes] : snapshot()) {
        const bool unchanged = bytes.empty() || key.first == 4;
        EXPECT_EQ(bytes == before.at(key), unchanged) << key.first << " " << key.second;
      }
      // Nothing at all is applied where no bucket is finite.
      const Bytes then = snapshot();
      const auto nothing = rank.step([](int64_t, int, int64_t) { return std::nanf(""); });
      EXPECT_FALSE(nothing.applied);
      EXPECT_TRUE(std::isinf(nothing.gradient_norm));
      EXPECT_TRUE(snapshot() == then);
      EXPECT_EQ(rank.optimizer().updates(), 2u);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Worlds, Released,
                         testing::Combine(testing::Values(1, 2, 3, 8),
                                          testing::Values(ReduceTime::kLast, ReduceTime::kEach)));

class PackedAccumulator : public testing::TestWithParam<std::tuple<int, AccumulatorFormat>> {};

RunShape accumulating(int world_size, AccumulatorFormat format, int stage) {
  RunShape shape{.world_size = world_size, .bucket_bytes = 3000};
  shape.sharding.stage = stage;
  shape.sharding.reduce = ReduceTime::kEach;
  shape.sharding.accumulator = format;
  shape.sharding.clip = ClipMode::kPrevious;
  shape.micro_batches = 3 * world_size + 1;
  return shape;
}

TEST_P(PackedAccumulator, EndsWithTheSameBitsAtEveryStageAndWithRelease) {
  const auto [world_size, format] = GetParam();
  const Result reference = run(accumulating(world_size, format, 1), gradient_value);
  EXPECT_LT(reference.last.clip_coefficient, 1);
  for (int bits = 0; bits < 16; ++bits) {
    RunShape shape = accumulating(world_size, format, bits & 3);
    shape.sharding.release = shape.sharding.skips_buckets = (bits & 4) != 0;
    if (bits & 8) shape.sharding.group = world_size == 4 ? 2 : 1;
    if (refusal_of(shape.sharding) != nullptr) continue;
    const Result result = run(shape, gradient_value);
    EXPECT_EQ(result.last.gradient_norm, reference.last.gradient_norm);
    EXPECT_TRUE(result.state == reference.state) << bits;
    EXPECT_EQ(result.seen, reference.seen) << bits;
  }
}

TEST_P(PackedAccumulator, KeepsANonFiniteGradientOfAnyRoundUntilTheStepIsSkipped) {
  const auto [world_size, format] = GetParam();
  for (const float value : {std::nanf(""), INFINITY}) {
    run_ranks(world_size, [&](Communicator& communicator) {
      Rank rank(communicator, accumulating(world_size, format, 2));
      const auto clean = [&](int64_t m, int t, int64_t i) { return gradient_value(0, m, t, i); };
      ASSERT_TRUE(rank.step(clean).applied);
      const std::string before = bytes_of_shard(rank.state());
      const StepOutcome outcome = rank.step([&](int64_t m, int t, int64_t i) {
        return m == world_size && t == 2 && i == 77 ? value : clean(m, t, i);
      });
      EXPECT_FALSE(outcome.applied);
      EXPECT_TRUE(bytes_of_shard(rank.state()) == before);
      EXPECT_TRUE(rank.step(clean).applied);
      rank.optimizer().finish_gathers();
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedAccumulator,
                         testing::Combine(testing::Values(1, 3, 4),
                                          testing::Values(AccumulatorFormat::kBF16,
                                                          AccumulatorFormat::kSplit)));

/// Relative error, in norm, of the sums of 64 micro-batches.
double accumulation_error(AccumulatorFormat format) {
  RunShape shape{.world_size = 1, .micro_batches = 64};
  shape.sharding.reduce = ReduceTime::kEach;
  shape.sharding.accumulator = format;
  double error = 0, size = 0;
  run_ranks(1, [&](Communicator& communicator) {
    Rank rank(communicator, shape);
    (void)rank.step([](int64_t m, int t, int64_t i) { return gradient_value(0, m, t, i); });
    const BucketPlan& plan = rank.gradients().plan();
    for (const Bucket& bucket : plan.buckets()) {
      rank.gradients().load(bucket);
      for (const BucketSegment& segment : bucket.segments) {
        const Tensor sums = rank.gradients().reduced_rows(segment.tensor, plan.rows(segment, 0));
        for (int64_t i = 0; i < sums.elements(); ++i) {
          double exact = 0;
          for (int64_t m = 0; m < 64; ++m) exact += gradient_value(0, m, segment.tensor, i);
          error += std::pow(static_cast<double>(sums.as<float>()[i]) - exact, 2);
          size += exact * exact;
        }
      }
    }
  });
  return std::sqrt(error / size);
}

TEST(Accumulator, OfSplitBitsIsNearFp32AfterManyMicroBatchesWherePlainBf16IsNot) {
  EXPECT_LT(accumulation_error(AccumulatorFormat::kFP32), 1e-6);
  EXPECT_LT(accumulation_error(AccumulatorFormat::kSplit), 2e-4);
  EXPECT_GT(accumulation_error(AccumulatorFormat::kBF16), 2e-3);
}

/// A rank's own bytes of a bucket, weights and states.
std::string own_bytes(Rank& rank, const Bucket& bucket, int of) {
  std::string bytes;
  for (const BucketSegment& segment : bucket.segments) {
    const RowRange rows = rank.optimizer().buckets().rows(segment, of);
    const Tensor weight = rank.state().weight_rows(segment.tensor, rows);
    bytes.append(weight.as<char>(), weight.bytes());
    for (size_t s = 0; s < rank.state().state_specs(segment.tensor).size(); ++s) {
      const auto state = rank.state().state_bytes(segment.tensor, s, rows);
      bytes.append(reinterpret_cast<const char*>(state.data()), state.size());
    }
  }
  return bytes;
}

TEST(ShardedOptimizer, TellsOfEachBucketOnceBeforeItsOwnRowsChange) {
  for (const bool release : {false, true}) {
    for (const int stage : {0, 1, 2, 3}) {
      if (release && stage == 1) continue;
      RunShape setup{.world_size = 2, .bucket_bytes = 4096, .sharding = {.stage = stage}};
      setup.sharding.release = setup.sharding.skips_buckets = release;
      setup.sharding.clips = !release;
      run_ranks(2, [&](Communicator& communicator) {
        Rank rank(communicator, setup);
        const auto& buckets = rank.optimizer().buckets().buckets();
        std::map<const Bucket*, std::string> before;
        for (const Bucket& bucket : buckets) {
          before[&bucket] = own_bytes(rank, bucket, communicator.rank());
        }
        std::map<const Bucket*, int> told;
        rank.optimizer().set_before_update([&](const Bucket& bucket) {
          ++told[&bucket];
          EXPECT_TRUE(own_bytes(rank, bucket, communicator.rank()) == before[&bucket]);
        });
        rank.step([](int64_t, int, int64_t) { return std::nanf(""); });
        EXPECT_TRUE(told.empty()) << "a skipped step changes nothing";
        rank.step([](int64_t, int, int64_t) { return 1e-3f; });
        for (const Bucket& bucket : buckets) {
          EXPECT_EQ(told[&bucket], 1) << "stage " << stage;
          const bool owns = !before[&bucket].empty();
          EXPECT_EQ(own_bytes(rank, bucket, communicator.rank()) != before[&bucket], owns);
        }
        rank.optimizer().finish_gathers();
      });
    }
  }
}

TEST(ShardedOptimizer, SkipsAStepWithoutTokens) {
  run_ranks(2, [&](Communicator& communicator) {
    Rank rank(communicator, RunShape{.world_size = 2, .tokens = 0});
    const StepOutcome outcome = rank.step([](int64_t, int, int64_t) { return 0.0f; });
    EXPECT_FALSE(outcome.applied);
    EXPECT_EQ(outcome.tokens, 0);
    EXPECT_EQ(rank.optimizer().updates(), 0u);
  });
}

TEST(ShardedOptimizer, RefusesAStepBeforeEveryLayerIsReady) {
  run_ranks(1, [&](Communicator& communicator) {
    Rank rank(communicator, RunShape{});
    rank.optimizer().begin_round({});
    rank.optimizer().layer_ready(2);
    EXPECT_THROW((void)rank.optimizer().step(1e-3, 1), Error);
  });
}

}  // namespace
}  // namespace flashshard
