// Parameter groups in the elementwise rules: a group's tensors change and are stored as a run whose
// options are the group's would have them, the other tensors as if there were no group.
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "kernels/numerics/bf16.h"
#include "optim/sharded_state.h"
#include "optim/sharding.h"
#include "optim/update_rule.h"

namespace flashshard {
namespace {

constexpr int kMatrix = 0, kNorm = 1;

std::vector<ParameterSpec> parameters() {
  ParameterSpec matrix;
  matrix.name = "matrix";
  matrix.rows = 9;
  matrix.cols = 40;
  ParameterSpec norm;
  norm.name = "norm";
  norm.rows = 40;
  norm.role = ParameterRole::kVector;
  norm.decay = false;
  return {matrix, norm};
}

/// Weight and states of every tensor after three updates, as bytes.
std::vector<std::string> updated(const ElementwiseOptions& options, double learning_rate = 0.01) {
  const auto backend = make_cpu_backend({1});
  MemoryLedger ledger(*backend);
  const auto rule = make_elementwise_rule(*backend, options);
  std::vector<int64_t> units;
  for (const ParameterSpec& parameter : parameters())
    units.push_back(unit_rows_of(*rule, parameter));
  const ShardLayout layout(parameters(), units, 1);
  ShardedState state(ledger, layout, *rule, 0, DType::kBF16, Sharding{});
  std::vector<ShardSlice> slices;
  for (int t : {kMatrix, kNorm}) {
    const Tensor weight = state.weight(t);
    const Tensor gradient =
        ledger.tensor(MemoryClass::kGradients, DType::kBF16, {weight.rows(), weight.cols()});
    for (int64_t i = 0; i < weight.elements(); ++i) {
      weight.as<uint16_t>()[i] = float_to_bf16(0.1f + 0.001f * static_cast<float>(i % 17));
      gradient.as<uint16_t>()[i] = float_to_bf16(0.02f * static_cast<float>(i % 5 - 2));
    }
    slices.push_back(state.slice(t, layout.rows_of(t, 0), gradient));
  }
  for (uint64_t t = 1; t <= 3; ++t) rule->apply(slices, {learning_rate, 1.0, t, nullptr}, {});
  backend->synchronize();
  std::vector<std::string> bytes(2);
  for (const ShardTensorView& view : state.shard_views()) {
    bytes[static_cast<size_t>(view.tensor)].append(reinterpret_cast<const char*>(view.bytes.data()),
                                                   view.bytes.size());
  }
  return bytes;
}

ElementwiseOptions with_group(const ParameterGroup& group) {
  ElementwiseOptions options;
  options.groups = {group};
  return options;
}

const std::vector<std::string>& plain() {
  static const std::vector<std::string> bytes = updated({});
  return bytes;
}

TEST(ParameterGroup, FactorIsARunWithTheWholeRateForItsTensorsAlone) {
  const auto grouped = updated(with_group({.parameters = {"matrix"}, .learning_rate_factor = 0.5}));
  const auto slower = updated({}, 0.005);
  EXPECT_EQ(grouped[kMatrix], slower[kMatrix]);
  EXPECT_EQ(grouped[kNorm], plain()[kNorm]);
  EXPECT_NE(grouped[kMatrix], plain()[kMatrix]);
}

TEST(ParameterGroup, FactorOfZeroLeavesTheWeightsAsTheyAre) {
  for (double peak : {0.0, 0.01}) {
    ElementwiseOptions options = with_group({.parameters = {"matrix"}, .learning_rate_factor = 0});
    options.weight_decay.peak_learning_rate = peak;
    const size_t weight_bytes = 9 * 40 * 2;
    const auto still = updated(options)[kMatrix], fresh = updated(options, 0.0)[kMatrix];
    EXPECT_EQ(still.substr(0, weight_bytes), fresh.substr(0, weight_bytes));
  }
}

TEST(ParameterGroup, FactorKeepsTheShareThatADecoupledDecayTakes) {
  // With a peak the decay is rate / peak of it: half the rate of half the peak takes as much.
  ElementwiseOptions options = with_group({.parameters = {"matrix"}, .learning_rate_factor = 0.5});
  options.weight_decay.peak_learning_rate = 0.02;
  ElementwiseOptions half;
  half.weight_decay.peak_learning_rate = 0.01;
  EXPECT_EQ(updated(options)[kMatrix], updated(half, 0.005)[kMatrix]);
}

TEST(ParameterGroup, DecayHoldsForAllItsTensors) {
  ElementwiseOptions none;
  none.weight_decay.rate = 0;
  const auto undecayed = updated(with_group({.parameters = {"matrix"}, .weight_decay = 0.0}));
  EXPECT_EQ(undecayed[kMatrix], updated(none)[kMatrix]);
  EXPECT_NE(undecayed[kMatrix], plain()[kMatrix]);
  const auto decayed = updated(with_group({.parameters = {"norm"}, .weight_decay = 0.5}));
  EXPECT_NE(decayed[kNorm], plain()[kNorm]) << "a vector decays where its group says so";
  EXPECT_EQ(decayed[kMatrix], plain()[kMatrix]);
}

struct Stored {
  const char* what;
  std::optional<Rule> rule;
  std::optional<StateFormat> state_format;
  std::optional<WeightFormat> weight_format;
};
void PrintTo(const Stored& stored, std::ostream* out) { *out << stored.what; }
class StoredGroups : public testing::TestWithParam<Stored> {};

TEST_P(StoredGroups, AreARunOfTheirOwnRuleAndFormat) {
  const auto& [what, rule, state_format, weight_format] = GetParam();
  ElementwiseOptions whole;
  whole.rule = rule.value_or(whole.rule);
  whole.state_format = state_format.value_or(whole.state_format);
  whole.weight_format = weight_format.value_or(whole.weight_format);
  const auto grouped = updated(with_group({.parameters = {"matrix"},
                                           .rule = rule,
                                           .weight_format = weight_format,
                                           .state_format = state_format}));
  EXPECT_EQ(grouped[kMatrix], updated(whole)[kMatrix]);
  EXPECT_NE(grouped[kMatrix], plain()[kMatrix]);
  EXPECT_EQ(grouped[kNorm], plain()[kNorm]);
}

INSTANTIATE_TEST_SUITE_P(Formats, StoredGroups,
                         testing::Values(Stored{"Lion", Rule::kLion, {}, {}},
                                         Stored{"SGD", Rule::kSGD, {}, {}},
                                         Stored{"fp32 state", {}, StateFormat::kFP32, {}},
                                         Stored{"32 bits", {}, {}, WeightFormat::kSplit32},
                                         Stored{"no master", {}, {}, WeightFormat::kBF16}));

TEST(ParameterGroup, MayStoreVectorsInFewerBits) {
  const auto backend = make_cpu_backend({1});
  const auto rule =
      make_elementwise_rule(*backend, with_group({.parameters = {"norm"},
                                                  .weight_format = WeightFormat::kSplit24,
                                                  .state_format = StateFormat::kCompanded}));
  const ParameterSpec norm = parameters()[kNorm];
  EXPECT_EQ(rule->weight_format(norm), WeightFormat::kSplit24);
  std::vector<std::string> names;
  for (const StateTensorSpec& spec : rule->states(norm)) names.push_back(spec.name);
  EXPECT_EQ(names, (std::vector<std::string>{"correction", "momentum", "momentum_scale", "variance",
                                             "variance_scale"}));
}

TEST(ParameterGroup, SharesNoTensorWithAnother) {
  const auto backend = make_cpu_backend({1});
  ElementwiseOptions options;
  options.groups = {{.parameters = {"matrix"}}, {.parameters = {"norm", "matrix"}}};
  EXPECT_THROW(make_elementwise_rule(*backend, options), Error);
}

}  // namespace
}  // namespace flashshard
