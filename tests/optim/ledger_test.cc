// The ledger's formulas: what is predicted is what the arenas hold, at every stage and world size,
// and what is divided is divided.
#include "optim/ledger.h"

#include <gtest/gtest.h>

#include <mutex>
#include <tuple>

#include "tests/optim/synthetic_run.h"

namespace flashshard {
namespace {

using namespace test;

MemoryTable add(const MemoryTable& a, const MemoryTable& b) {
  MemoryTable sum;
  for (size_t c = 0; c < kMemoryClasses; ++c) sum.bytes[c] = a.bytes[c] + b.bytes[c];
  return sum;
}

/// The tables of all ranks added up; on each the prediction equals what is held.
MemoryTable bytes_over_ranks(const RunShape& setup) {
  std::mutex mutex;
  MemoryTable sum;
  run_ranks(setup.world_size, [&](Communicator& communicator) {
    Rank rank(communicator, setup);
    LedgerInputs inputs;
    inputs.format = rank.gradients().format();
    inputs.bucket_bytes = setup.bucket_bytes;
    const MemoryTable predicted =
        predict_memory(rank.layout(), rank.rule(), communicator.rank(), inputs);
    const MemoryTable& tagged = rank.ledger().tagged();
    for (size_t c = 0; c < kMemoryClasses; ++c) {
      EXPECT_EQ(predicted.bytes[c], tagged.bytes[c]) << name_of(static_cast<MemoryClass>(c));
    }
    const std::lock_guard lock(mutex);
    sum = add(sum, tagged);
  });
  return sum;
}

/// Elements of the model: matrices and embeddings, vectors, groups of 32 of the former.
struct Elements {
  int64_t matrices = 0, vectors = 0, groups = 0;
  int64_t all() const { return matrices + vectors; }
};
Elements elements() {
  Elements count;
  for (const auto& p : parameters()) {
    (p.role == ParameterRole::kVector ? count.vectors : count.matrices) += p.elements();
    if (p.role != ParameterRole::kVector) count.groups += (p.elements() + 31) / 32;
  }
  return count;
}

class Ledger : public testing::TestWithParam<std::tuple<int, int, bool>> {};

TEST_P(Ledger, PredictsWhatIsHeldAndDividesWhatTheStageDivides) {
  const auto [world_size, stage, each] = GetParam();
  RunShape setup{.world_size = world_size, .bucket_bytes = 5000};
  setup.sharding.stage = stage;
  if (each) setup.sharding.reduce = ReduceTime::kEach;
  const MemoryTable sum = bytes_over_ranks(setup);
  const Elements count = elements();
  const auto copies = [&](int divided_from) { return stage >= divided_from ? 1 : world_size; };
  EXPECT_EQ(sum[MemoryClass::kWeights], copies(3) * 2 * count.all());
  EXPECT_EQ(sum[MemoryClass::kMomentum], copies(1) * (count.matrices + 4 * count.vectors));
  EXPECT_EQ(sum[MemoryClass::kVariance], copies(1) * (count.matrices + 4 * count.vectors));
  EXPECT_EQ(sum[MemoryClass::kCorrection], copies(1) * (count.matrices + 2 * count.vectors));
  EXPECT_EQ(sum[MemoryClass::kScales], copies(1) * 2 * 2 * count.groups);
  const bool kept = stage < 2;
  EXPECT_EQ(sum[MemoryClass::kGradients],
            kept ? world_size * 2 * count.all() : (each ? 0 : 2 * count.all()));
  EXPECT_EQ(sum[MemoryClass::kAccumulator], each ? copies(1) * 4 * count.all() : 0);
  EXPECT_EQ(sum[MemoryClass::kGathered] > 0, stage == 3 && world_size > 1);
}

INSTANTIATE_TEST_SUITE_P(Stages, Ledger,
                         testing::Combine(testing::Values(1, 2, 3, 4, 8),
                                          testing::Values(0, 1, 2, 3), testing::Bool()));

struct Grouped {
  int world_size, group, stage;
  bool each;
};
void PrintTo(const Grouped& grouped, std::ostream* out) {
  *out << grouped.world_size << " ranks in groups of " << grouped.group << ", stage "
       << grouped.stage << (grouped.each ? " EACH" : "");
}
class GroupedLedger : public testing::TestWithParam<Grouped> {};

TEST_P(GroupedLedger, DividesAmongTheRanksOfAGroupAndHoldsACopyInEach) {
  const auto [world_size, group, stage, each] = GetParam();
  RunShape setup{.world_size = world_size, .bucket_bytes = 5000};
  setup.sharding.stage = stage;
  setup.sharding.group = group;
  if (each) setup.sharding.reduce = ReduceTime::kEach;
  const MemoryTable sum = bytes_over_ranks(setup);
  const Elements count = elements();
  const auto copies = [&](int divided_from) {
    return stage >= divided_from ? world_size / group : world_size;
  };
  EXPECT_EQ(sum[MemoryClass::kWeights], copies(3) * 2 * count.all());
  EXPECT_EQ(sum[MemoryClass::kMomentum], copies(1) * (count.matrices + 4 * count.vectors));
  EXPECT_EQ(sum[MemoryClass::kScales], copies(1) * 2 * 2 * count.groups);
  EXPECT_EQ(sum[MemoryClass::kGradients], each && stage >= 2 ? 0 : copies(2) * 2 * count.all());
  EXPECT_EQ(sum[MemoryClass::kAccumulator], each ? copies(1) * 4 * count.all() : 0);
  EXPECT_EQ(sum[MemoryClass::kGathered] > 0, stage == 3 && group > 1);
}

INSTANTIATE_TEST_SUITE_P(Stages, GroupedLedger,
                         testing::Values(Grouped{4, 2, 1, false}, Grouped{4, 2, 2, false},
                                         Grouped{8, 4, 3, false}, Grouped{4, 1, 3, false},
                                         Grouped{8, 2, 2, true}, Grouped{4, 2, 3, true}));

TEST(LedgerTest, GivesAWiderReducedGradientMemoryOfItsOwnWhereItFindsNone) {
  const int64_t own = 2 * elements().all(), wide = 4 * elements().all();
  const auto gradients = [](int world_size, Sharding sharding) {
    sharding.fp32_reduced_gradient = true;
    RunShape setup{.world_size = world_size, .bucket_bytes = 5000, .sharding = sharding};
    if (sharding.local_sums) setup.micro_batches = 2 * world_size;
    const MemoryTable sum = bytes_over_ranks(setup);
    return sum[MemoryClass::kGradients] + sum[MemoryClass::kAccumulator];
  };
  EXPECT_EQ(gradients(3, {.stage = 0}), 3 * (own + wide));
  EXPECT_EQ(gradients(3, {.stage = 1}), 3 * own + wide);
  EXPECT_EQ(gradients(4, {.stage = 1, .group = 2}), 4 * own + 2 * wide);
  EXPECT_EQ(gradients(3, {.stage = 2}), wide);
  // Sums of several micro-batches are fp32 already; one rank's gradient needs no more bits.
  EXPECT_EQ(gradients(3, {.stage = 1, .local_sums = true}), 3 * wide);
  EXPECT_EQ(gradients(1, {.stage = 0}), own);
}

TEST(LedgerTest, HasNoGradientsAndNoAccumulatorWhereTheyGoIntoTheMoments) {
  for (int stage : {0, 2, 3}) {
    const MemoryTable sum = bytes_over_ranks(into_moments(3, stage, 3));
    EXPECT_EQ(sum[MemoryClass::kGradients], 0);
    EXPECT_EQ(sum[MemoryClass::kAccumulator], 0);
    EXPECT_EQ(sum[MemoryClass::kMomentum], (stage == 0 ? 3 : 1) * 4 * elements().all());
  }
}

TEST(LedgerTest, PredictsOtherFormsOfGradientsAndTiedTables) {
  for (const RunShape& setup :
       {RunShape{.world_size = 3, .sharding = {.stage = 2, .fp32_reduced_gradient = true}},
        RunShape{.world_size = 3, .sharding = {.stage = 1, .fp32_reduced_gradient = true}},
        RunShape{.world_size = 3, .sharding = {.stage = 0, .fp32_reduced_gradient = true}},
        RunShape{.world_size = 4, .sharding = {.group = 2, .fp32_reduced_gradient = true}},
        RunShape{.world_size = 3, .sharding = {.local_sums = true}, .micro_batches = 6},
        RunShape{.world_size = 2, .sharding = {.stage = 0, .local_sums = true}, .micro_batches = 4},
        RunShape{.world_size = 3, .sharding = {.stage = 3}, .tied = true},
        RunShape{
            .world_size = 3,
   .sharding = {.stage = 0, .reduce = ReduceTime::kEach, .accumulator = AccumulatorFormat::kBF16}},
        RunShape{
            .world_size = 2,
   .sharding = {.stage = 3, .reduce = ReduceTime::kEach, .accumulator = AccumulatorFormat::kSplit}},
        RunShape{.world_size = 1, .sharding = {.stage = 0, .release = true}},
        RunShape{.world_size = 3, .sharding = {.stage = 0, .release = true}},
        RunShape{.world_size = 3, .sharding = {.stage = 2, .release = true}},
        RunShape{.world_size = 2,
        .sharding = {.stage = 2, .fp32_reduced_gradient = true, .release = true}},
        RunShape{.world_size = 3, .sharding = {.stage = 3, .release = true}, .tied = true},
        RunShape{.world_size = 4, .sharding = {.stage = 2, .group = 2, .release = true}},
        into_moments(3, 2, 3),
        into_moments(2, 0, 3),
        into_moments(1, 3, 3),
        RunShape{.world_size = 4, .sharding = {.stage = 3, .group = 2, .release = true}},
        RunShape{.world_size = 4,
        .sharding = {.stage = 2,
                    .group = 2,
                    .reduce = ReduceTime::kEach,
                    .accumulator = AccumulatorFormat::kSplit}},
        RunShape{.world_size = 3,
        .sharding = {.stage = 0, .reduce = ReduceTime::kEach, .release = true}}}) {
    EXPECT_GT(bytes_over_ranks(setup).total(), 0);
  }
}

/// The design's table for a model that is all matrices: AdamW, companded, bytes a parameter.
TEST(LedgerTest, GivesTheBytesPerParameterOfTheDocumentation) {
  const auto backend = make_cpu_backend({1});
  const auto rule = make_elementwise_rule(*backend, {});
  std::vector<ParameterSpec> matrices;
  std::vector<int64_t> units;
  for (int layer = 0; layer < 40; ++layer) {
    ParameterSpec matrix;
    matrix.name = "matrix";
    matrix.rows = 256;
    matrix.cols = 64;
    matrix.layer = layer;
    matrices.push_back(matrix);
    units.push_back(unit_rows_of(*rule, matrix));
  }
  const auto state_bytes = [&](int stage, int world_size, bool release = false) {
    const ShardLayout layout(matrices, units, world_size);
    LedgerInputs inputs;
    inputs.format.sharding.stage = stage;
    inputs.format.sharding.release = release;
    const MemoryTable table = predict_memory(layout, *rule, 0, inputs);
    int64_t bytes = 0;
    for (auto c : {MemoryClass::kWeights, MemoryClass::kGradients, MemoryClass::kMomentum,
                   MemoryClass::kVariance, MemoryClass::kScales, MemoryClass::kCorrection}) {
      bytes += table[c];
    }
    return static_cast<double>(bytes) / (40 * 256 * 64);
  };
  for (int stage : {0, 1, 2, 3}) EXPECT_DOUBLE_EQ(state_bytes(stage, 1), 7.125) << stage;
  EXPECT_DOUBLE_EQ(state_bytes(0, 8), 7.125);
  EXPECT_DOUBLE_EQ(state_bytes(1, 8), 4 + 3.125 / 8);
  EXPECT_DOUBLE_EQ(state_bytes(2, 8), 2 + 5.125 / 8);
  EXPECT_DOUBLE_EQ(state_bytes(3, 8), 7.125 / 8);
  for (int stage : {0, 2, 3}) EXPECT_DOUBLE_EQ(state_bytes(stage, 1, true), 5.125) << stage;
  EXPECT_DOUBLE_EQ(state_bytes(0, 8, true), 5.125);
  EXPECT_DOUBLE_EQ(state_bytes(2, 8, true), 2 + 3.125 / 8);
  EXPECT_DOUBLE_EQ(state_bytes(3, 8, true), 5.125 / 8);
}

TEST(LedgerTest, StagingIsWhatARankSavesUpToItsLimit) {
  run_ranks(3, [](Communicator& communicator) {
    Rank rank(communicator, RunShape{.world_size = 3, .sharding = {.stage = 1}});
    LedgerInputs inputs;
    inputs.format = rank.gradients().format();
    const auto staging = [&](int64_t limit) {
      inputs.staging_limit = limit;
      const auto table = predict_memory(rank.layout(), rank.rule(), communicator.rank(), inputs);
      return table[MemoryClass::kStaging];
    };
    int64_t saved = 0;
    for (const auto& view : rank.state().shard_views()) {
      saved += static_cast<int64_t>(view.bytes.size());
    }
    EXPECT_EQ(staging(0), 0);
    EXPECT_EQ(staging(100), 100);
    EXPECT_EQ(staging(int64_t{1} << 40), saved);
  });
}

/// What a rule stores for a parameter of a matrix of 64 x 32, beside its bf16 weight, in bytes.
struct RuleBytes {
  Rule rule;
  double beta1;
  StateFormat state;
  WeightFormat weight;
  double bytes;
};
class StateBytes : public testing::TestWithParam<RuleBytes> {};

TEST_P(StateBytes, AreThoseOfTheStatesThatTheRuleNeeds) {
  const auto& [rule, beta1, state, weight, bytes] = GetParam();
  const auto backend = make_cpu_backend({1});
  ElementwiseOptions options;
  options.rule = rule;
  options.hyper.beta1 = beta1;
  options.state_format = state;
  options.weight_format = weight;
  const auto made = make_elementwise_rule(*backend, options);
  ParameterSpec matrix;
  matrix.name = "matrix";
  matrix.rows = 64;
  matrix.cols = 32;
  const ShardLayout layout({matrix}, {unit_rows_of(*made, matrix)}, 1);
  const MemoryTable table = predict_memory(layout, *made, 0, {});
  const int64_t states = table[MemoryClass::kCorrection] + table[MemoryClass::kMomentum] +
                         table[MemoryClass::kVariance] + table[MemoryClass::kScales];
  EXPECT_EQ(static_cast<double>(states) / (64 * 32), bytes);
}

INSTANTIATE_TEST_SUITE_P(
    Rules, StateBytes,
    testing::Values(
        RuleBytes{Rule::kAdamW, 0.9, StateFormat::kCompanded, WeightFormat::kSplit24, 3.125},
        RuleBytes{Rule::kAdam, 0.9, StateFormat::kFlashOptim, WeightFormat::kCorrected24, 3.125},
        RuleBytes{Rule::kAdamW, 0.9, StateFormat::kFP32, WeightFormat::kSplit32, 10},
        RuleBytes{Rule::kLion, 0.9, StateFormat::kCompanded, WeightFormat::kSplit24, 2.0625},
        RuleBytes{Rule::kLion, 0.9, StateFormat::kFP32, WeightFormat::kBF16, 4},
        RuleBytes{Rule::kSGD, 0.9, StateFormat::kFlashOptim, WeightFormat::kCorrected32, 3.0625},
        RuleBytes{Rule::kSGDW, 0.9, StateFormat::kCompanded, WeightFormat::kBF16, 1.0625},
        RuleBytes{Rule::kSGD, 0, StateFormat::kCompanded, WeightFormat::kSplit24, 1},
        RuleBytes{Rule::kSGDW, 0, StateFormat::kCompanded, WeightFormat::kBF16, 0}));

}  // namespace
}  // namespace flashshard
