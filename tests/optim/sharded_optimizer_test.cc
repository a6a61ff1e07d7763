// ZeRO-1 as behaviour: any world size, bucket size and format does to weights and states what one
// rank does that is given the folded gradient; a step with a non-finite gradient does nothing at
// all.
#include "optim/sharded_optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>

#include "kernels/numerics/bf16.h"
#include "optim/ledger.h"
#include "tests/optim/ranks.h"

namespace flashshard {
namespace {

constexpr int kSteps = 3;

std::vector<ParameterSpec> parameters() {
  const auto make = [](const char* name, int64_t rows, int64_t cols, ParameterRole role,
                       int layer) {
    ParameterSpec p;
    p.name = name;
    p.rows = rows;
    p.cols = cols;
    p.role = role;
    p.decay = role != ParameterRole::kVector;
    p.layer = layer;
    return p;
  };
  return {make("embedding", 61, 48, ParameterRole::kEmbedding, 0),
          make("norm1", 48, 1, ParameterRole::kVector, 1),
          make("qkv", 70, 48, ParameterRole::kMatrix, 1),
          make("down", 48, 33, ParameterRole::kMatrix, 1),
          make("norm2", 100, 1, ParameterRole::kVector, 2),
          make("head", 5, 7, ParameterRole::kMatrix, 2)};
}

// A gradient that differs by (step, rank, tensor, element), exponents spread over 2^+-12: N(0, 1)
// data hides wrong orders.
float gradient_value(int step, int rank, int tensor, int64_t element) {
  uint64_t h = static_cast<uint64_t>((step * 31 + rank) * 37 + tensor);
  h = (h << 32 | static_cast<uint64_t>(element + 1)) * 0x9e3779b97f4a7c15ull;
  h ^= h >> 29;
  h *= 0xbf58476d1ce4e5b9ull;
  h ^= h >> 32;
  const double unit = static_cast<double>(h & 0xffff) / 65536.0 + 0.5;
  const int exponent = static_cast<int>((h >> 16) % 25) - 12;
  return bf16_to_float(
      float_to_bf16(static_cast<float>(std::ldexp(unit, exponent) * ((h >> 40) & 1 ? 1 : -1))));
}

struct RunShape {
  int world_size = 1;
  int64_t bucket_bytes = 64 << 20;
  Rule rule = Rule::kAdamW;
  double beta1 = 0.9;  // of SGD: the momentum
  StateFormat state = StateFormat::kCompanded;
  WeightFormat weight = WeightFormat::kSplit24;
  DType gradient = DType::kBF16;
  int contributors = 0;  // 0: all
  int group = 0;         // of TWO_LEVEL; 0: FLAT
  double clip_norm = 1.0;
  int64_t tokens = 10;  // of each contributing rank
};

constexpr const char* kRuleNames[] = {"AdamW", "Adam", "Lion", "SGD", "SGDW"};
constexpr const char* kStateNames[] = {"V2", "fp32", "V1"};
constexpr const char* kWeightNames[] = {"24 bits", "32 bits",    "bf16",
                                        "fp32",    "V1 24 bits", "V1 32 bits"};

// The tests' names: bytes of padding would make them differ from run to run.
void PrintTo(const RunShape& shape, std::ostream* out) {
  *out << shape.world_size << " ranks, buckets of " << shape.bucket_bytes << ", "
       << kRuleNames[static_cast<int>(shape.rule)] << (shape.beta1 == 0 ? " without momentum" : "")
       << ", state " << kStateNames[static_cast<int>(shape.state)] << ", weights "
       << kWeightNames[static_cast<int>(shape.weight)]
       << (shape.gradient == DType::kFP32 ? ", fp32 gradient" : "");
  if (shape.contributors > 0) *out << ", " << shape.contributors << " contributors";
  if (shape.group > 0) *out << ", groups of " << shape.group;
}

bool is_v1(WeightFormat format) {
  return format == WeightFormat::kCorrected24 || format == WeightFormat::kCorrected32;
}

/// One rank's run; the gradient of (step, tensor) comes from `fill`.
class Rank {
 public:
  Rank(Communicator& communicator, const RunShape& setup)
      : setup_(setup),
        backend_(make_cpu_backend({1})),
        ledger_(*backend_),
        rule_(make_elementwise_rule(*backend_, options(setup))),
        layout_(parameters(), units(*rule_), setup.world_size),
        state_(ledger_, layout_, *rule_, communicator.rank(),
               setup.weight == WeightFormat::kFP32 ? DType::kFP32 : DType::kBF16) {
    for (const auto& p : layout_.parameters()) {
      gradients_.push_back(
          ledger_.tensor(MemoryClass::kGradients, setup.gradient, {p.rows, p.cols}));
    }
    ShardedOptimizerOptions o;
    o.bucket_bytes = setup.bucket_bytes;
    o.clip_norm = setup.clip_norm;
    if (setup.group > 0) o.order = {ReductionOrder::Kind::kTwoLevel, setup.group};
    o.wire = setup.weight == WeightFormat::kFP32 ? DType::kFP32 : DType::kBF16;
    optimizer_ =
        std::make_unique<ShardedOptimizer>(communicator, ledger_, state_, gradients_, *rule_, o);
    optimizer_->initialize([&](int tensor, RowRange rows, std::span<float> out) {
      for (size_t i = 0; i < out.size(); ++i) {
        out[i] = 0.01f * gradient_value(
                             99, 0, tensor,
                             rows.first * layout_.parameter(tensor).cols + static_cast<int64_t>(i));
      }
    });
  }

  template <class Value>
  StepOutcome step(const Value& value, int64_t tokens) {
    for (size_t t = 0; t < gradients_.size(); ++t) {
      for (int64_t i = 0; i < gradients_[t].elements(); ++i) {
        const float v = value(static_cast<int>(t), i);
        if (setup_.gradient == DType::kFP32)
          gradients_[t].as<float>()[i] = v;
        else
          gradients_[t].as<uint16_t>()[i] = float_to_bf16(v);
      }
    }
    optimizer_->begin_step(setup_.contributors == 0 ? setup_.world_size : setup_.contributors);
    for (int layer : {2, 1, 0}) optimizer_->layer_ready(layer);
    return optimizer_->step(1e-2, tokens);
  }

  ShardedState& state() { return state_; }
  ShardedOptimizer& optimizer() { return *optimizer_; }
  MemoryLedger& ledger() { return ledger_; }
  const ShardLayout& layout() { return layout_; }
  UpdateRule& rule() { return *rule_; }

 private:
  static ElementwiseOptions options(const RunShape& setup) {
    ElementwiseOptions o;
    o.rule = setup.rule;
    o.hyper.beta1 = setup.beta1;
    o.weight_format = setup.weight;
    o.vector_weight_format = setup.weight == WeightFormat::kFP32 ? WeightFormat::kFP32
                             : is_v1(setup.weight)               ? WeightFormat::kCorrected32
                                                                 : WeightFormat::kSplit32;
    o.state_format = setup.state;
    o.seed = 7;
    return o;
  }
  static std::vector<int64_t> units(const UpdateRule& rule) {
    std::vector<int64_t> all;
    for (const auto& p : parameters()) all.push_back(unit_rows_of(rule, p));
    return all;
  }

  RunShape setup_;
  std::unique_ptr<Backend> backend_;
  MemoryLedger ledger_;
  std::unique_ptr<UpdateRule> rule_;
  ShardLayout layout_;
  ShardedState state_;
  std::vector<Tensor> gradients_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
};

using Bytes = std::map<std::pair<int, std::string>, std::string>;

/// All ranks' shards put together, by (tensor, state), and every rank's whole weights.
struct Result {
  Bytes state;
  std::vector<std::string> weights;  // by rank
  StepOutcome last;
};

std::string whole_weights(ShardedState& state) {
  std::string all;
  for (int t = 0; t < state.layout().tensors(); ++t) {
    const Tensor w = state.weight(t);
    all.append(w.as<char>(), w.bytes());
  }
  return all;
}

template <class Value>
Result run(const RunShape& setup, const Value& value) {
  Result result;
  std::vector<Bytes> shards(static_cast<size_t>(setup.world_size));
  result.weights.resize(static_cast<size_t>(setup.world_size));
  std::mutex mutex;
  test::run_ranks(setup.world_size, [&](Communicator& communicator) {
    Rank rank(communicator, setup);
    StepOutcome outcome;
    const bool contributes = setup.contributors == 0 || communicator.rank() < setup.contributors;
    for (int s = 0; s < kSteps; ++s) {
      outcome = rank.step(
          [&](int t, int64_t i) {
            return contributes ? value(s, communicator.rank(), t, i) : std::nanf("");
          },
          contributes ? setup.tokens : 0);
    }
    const auto r = static_cast<size_t>(communicator.rank());
    for (const auto& view : rank.state().shard_views()) {
      shards[r][{view.tensor, view.state}] =
          std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
    }
    result.weights[r] = whole_weights(rank.state());
    const std::lock_guard lock(mutex);
    result.last = outcome;
  });
  for (auto& shard : shards) {
    for (auto& [key, bytes] : shard) result.state[key] += bytes;
  }
  return result;
}

/// The left fold over ranks first .. last - 1 in fp32.
float left_fold(int step, int first, int last, int tensor, int64_t element) {
  float sum = gradient_value(step, first, tensor, element);
  for (int r = first + 1; r < last; ++r) sum += gradient_value(step, r, tensor, element);
  return sum;
}

/// The fold over `ranks` ranks, in groups where there are some, rounded once to the gradient's
/// type.
float folded(int step, int ranks, int tensor, int64_t element, bool bf16, int group = 0) {
  const int first = group > 0 ? std::min(group, ranks) : ranks;
  float sum = left_fold(step, 0, first, tensor, element);
  for (int r = first; r < ranks; r += group) {
    sum += left_fold(step, r, std::min(r + group, ranks), tensor, element);
  }
  return bf16 ? bf16_to_float(float_to_bf16(sum)) : sum;
}

class Zero1 : public testing::TestWithParam<RunShape> {};

TEST_P(Zero1, EqualsOneRankWithTheFoldedGradientBitForBit) {
  const RunShape setup = GetParam();
  const int ranks = setup.contributors == 0 ? setup.world_size : setup.contributors;
  const Result sharded = run(setup, gradient_value);
  RunShape one = setup;
  one.world_size = 1;
  one.contributors = 0;
  one.bucket_bytes = 64 << 20;
  one.tokens = setup.tokens * ranks;
  const bool bf16 = setup.gradient == DType::kBF16;
  one.group = 0;
  const Result reference = run(
      one, [&](int s, int, int t, int64_t i) { return folded(s, ranks, t, i, bf16, setup.group); });
  ASSERT_LT(reference.last.clip_coefficient, 1.0);
  EXPECT_EQ(sharded.state, reference.state);
  for (const auto& weights : sharded.weights) EXPECT_EQ(weights, reference.weights[0]);
}

INSTANTIATE_TEST_SUITE_P(
    Worlds, Zero1,
    testing::Values(
        RunShape{.world_size = 1}, RunShape{.world_size = 2},
        RunShape{.world_size = 3, .bucket_bytes = 4096},
        RunShape{.world_size = 4, .bucket_bytes = 100}, RunShape{.world_size = 7},
        RunShape{.world_size = 2, .state = StateFormat::kFP32, .weight = WeightFormat::kSplit32},
        RunShape{.world_size = 3, .state = StateFormat::kFP32, .weight = WeightFormat::kBF16},
        RunShape{.world_size = 3,
                 .state = StateFormat::kFP32,
                 .weight = WeightFormat::kFP32,
                 .gradient = DType::kFP32},
        RunShape{.world_size = 3, .gradient = DType::kFP32},
        RunShape{.world_size = 4, .contributors = 3}, RunShape{.world_size = 4, .group = 2},
        RunShape{.world_size = 5, .bucket_bytes = 3000, .group = 2},
        RunShape{.world_size = 4, .gradient = DType::kFP32, .contributors = 3, .group = 3},
        RunShape{.world_size = 3, .contributors = 1}));

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
INSTANTIATE_TEST_SUITE_P(Rules, Zero1, testing::ValuesIn(rules_and_formats()));

TEST(ShardedOptimizer, TheNormIsThatOfTheMeanGradient) {
  RunShape setup;
  setup.world_size = 3;
  const Result result = run(setup, gradient_value);
  double squares = 0;
  const auto specs = parameters();
  for (size_t t = 0; t < specs.size(); ++t) {
    for (int64_t i = 0; i < specs[t].elements(); ++i) {
      const double g = folded(kSteps - 1, 3, static_cast<int>(t), i, true);
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

class NonFinite : public testing::TestWithParam<float> {};

TEST_P(NonFinite, GradientOnOneRankChangesNoByteOnAny) {
  RunShape setup;
  setup.world_size = 3;
  test::run_ranks(3, [&](Communicator& communicator) {
    Rank rank(communicator, setup);
    const auto clean = [&](int t, int64_t i) {
      return gradient_value(0, communicator.rank(), t, i);
    };
    ASSERT_TRUE(rank.step(clean, 10).applied);
    const auto snapshot = [&] {
      std::string all = whole_weights(rank.state());
      for (const auto& view : rank.state().shard_views()) {
        all.append(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
      }
      return all;
    };
    const std::string before = snapshot();
    const StepOutcome outcome = rank.step(
        [&](int t, int64_t i) {
          return communicator.rank() == 1 && t == 2 && i == 1234 ? GetParam() : clean(t, i);
        },
        10);
    EXPECT_FALSE(outcome.applied);
    EXPECT_GE(outcome.nonfinite_groups, 1);
    EXPECT_TRUE(std::isinf(outcome.gradient_norm));
    EXPECT_EQ(snapshot(), before);
    EXPECT_EQ(rank.optimizer().updates(), 1u);
    EXPECT_TRUE(rank.step(clean, 10).applied);
    EXPECT_NE(snapshot(), before);
  });
}

INSTANTIATE_TEST_SUITE_P(Values, NonFinite,
                         testing::Values(std::nanf(""), INFINITY, -INFINITY, 0x1p60f, -0x1p61f));

TEST(ShardedOptimizer, SkipsAStepWithoutTokens) {
  test::run_ranks(2, [&](Communicator& communicator) {
    Rank rank(communicator, RunShape{.world_size = 2});
    const StepOutcome outcome = rank.step([](int, int64_t) { return 0.0f; }, 0);
    EXPECT_FALSE(outcome.applied);
    EXPECT_EQ(outcome.tokens, 0);
    EXPECT_EQ(rank.optimizer().updates(), 0u);
  });
}

TEST(ShardedOptimizer, RefusesAStepBeforeEveryLayerIsReady) {
  test::run_ranks(1, [&](Communicator& communicator) {
    Rank rank(communicator, RunShape{});
    rank.optimizer().begin_step(1);
    rank.optimizer().layer_ready(2);
    EXPECT_THROW((void)rank.optimizer().step(1e-3, 1), Error);
  });
}

class Bytes1 : public testing::TestWithParam<int> {};

TEST_P(Bytes1, PredictedEqualTaggedAndStatesAreDividedAmongRanks) {
  const int n = GetParam();
  std::mutex mutex;
  MemoryTable sum;
  test::run_ranks(n, [&](Communicator& communicator) {
    for (int64_t bucket_bytes : {int64_t{64} << 20, int64_t{5000}}) {
      RunShape setup;
      setup.world_size = n;
      setup.bucket_bytes = bucket_bytes;
      Rank rank(communicator, setup);
      LedgerInputs inputs;
      inputs.bucket_bytes = bucket_bytes;
      const MemoryTable predicted =
          predict_memory(rank.layout(), rank.rule(), communicator.rank(), inputs);
      for (size_t c = 0; c < kMemoryClasses; ++c) {
        const auto memory_class = static_cast<MemoryClass>(c);
        EXPECT_EQ(predicted[memory_class], rank.ledger().tagged()[memory_class])
            << name_of(memory_class);
      }
      if (bucket_bytes != 5000) continue;
      const std::lock_guard lock(mutex);
      for (size_t c = 0; c < kMemoryClasses; ++c) {
        sum.bytes[c] += rank.ledger().tagged()[static_cast<MemoryClass>(c)];
      }
    }
  });
  int64_t matrices = 0, vectors = 0, groups = 0;
  for (const auto& p : parameters()) {
    (p.role == ParameterRole::kVector ? vectors : matrices) += p.elements();
    if (p.role != ParameterRole::kVector) groups += (p.elements() + 31) / 32;
  }
  EXPECT_EQ(sum[MemoryClass::kMomentum], matrices + 4 * vectors);
  EXPECT_EQ(sum[MemoryClass::kVariance], matrices + 4 * vectors);
  EXPECT_EQ(sum[MemoryClass::kCorrection], matrices + 2 * vectors);
  EXPECT_EQ(sum[MemoryClass::kScales], 2 * 2 * groups);
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, Bytes1, testing::Values(1, 2, 3, 4, 8));

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
