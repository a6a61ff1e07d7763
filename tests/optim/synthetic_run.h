// A small model's training in optim alone: gradients are made, so that every run can be compared
// with any other, whatever its stage and world size.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "kernels/numerics/bf16.h"
#include "optim/ledger.h"
#include "optim/sharded_optimizer.h"
#include "tests/optim/ranks.h"

namespace flashshard::test {

constexpr int kLastLayer = 4;

/// Three blocks between an embedding and a head. `tied`: the embedding is the head's matrix too.
inline std::vector<ParameterSpec> parameters(bool tied = false) {
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
  std::vector<ParameterSpec> all = {make("embedding", 61, 48, ParameterRole::kEmbedding, 0),
                                    make("norm1", 48, 1, ParameterRole::kVector, 1),
                                    make("qkv", 70, 48, ParameterRole::kMatrix, 1),
                                    make("down", 48, 33, ParameterRole::kMatrix, 1),
                                    make("up", 33, 48, ParameterRole::kMatrix, 2),
                                    make("gate", 40, 20, ParameterRole::kMatrix, 3),
                                    make("norm2", 100, 1, ParameterRole::kVector, 4),
                                    make("head", 5, 7, ParameterRole::kMatrix, 4)};
  if (tied) all.front().tied_names = {"head"};
  return all;
}

// A gradient that differs by (step, micro-batch, tensor, element), exponents spread over 2^+-12:
// N(0, 1) data hides wrong orders.
inline float gradient_value(int step, int64_t micro_batch, int tensor, int64_t element) {
  uint64_t h = static_cast<uint64_t>((step * 31 + micro_batch) * 37 + tensor);
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
  Sharding sharding = {};
  int64_t micro_batches = 0;  // of a step; 0: one a rank
  double clip_norm = 1.0;
  int64_t tokens = 10;  // of a micro-batch
  bool tied = false;
  int group = 0;  // of TWO_LEVEL; 0: FLAT
  int steps = 3;

  DType model() const { return weight == WeightFormat::kFP32 ? DType::kFP32 : DType::kBF16; }
  int64_t all_micro_batches() const { return micro_batches == 0 ? world_size : micro_batches; }
};

/// AdamA: gradients go into fp32 moments, `rounds` micro-batches a rank.
inline RunShape into_moments(int world_size, int stage, int64_t rounds) {
  RunShape shape{.world_size = world_size,
                 .bucket_bytes = 3000,
                 .state = StateFormat::kFP32,
                 .weight = WeightFormat::kSplit32};
  shape.sharding = {.stage = stage,
                    .reduce = ReduceTime::kEach,
                    .accumulator = AccumulatorFormat::kMoments,
                    .fp32_state = true,
                    .release = true,
                    .clips = false,
                    .skips_buckets = true};
  shape.micro_batches = rounds * world_size;
  return shape;
}

constexpr const char* kRuleNames[] = {"AdamW", "Adam", "Lion", "SGD", "SGDW"};
constexpr const char* kAccumulatorNames[] = {"", " bf16 accumulator", " split accumulator",
                                             " into moments"};
constexpr const char* kClipNames[] = {"global", "previous", "bucket"};
constexpr const char* kStateNames[] = {"V2", "fp32", "V1"};
constexpr const char* kWeightNames[] = {"24 bits", "32 bits",    "bf16",
                                        "fp32",    "V1 24 bits", "V1 32 bits"};

// The tests' names: bytes of padding would make them differ from run to run.
inline void PrintTo(const RunShape& shape, std::ostream* out) {
  *out << shape.world_size << " ranks, stage " << shape.sharding.stage
       << (shape.sharding.reduces_each() ? " EACH" : "")
       << (shape.sharding.local_sums ? " local sums" : "")
       << (shape.sharding.fp32_reduced_gradient ? " fp32 reduced gradient" : "")
       << kAccumulatorNames[static_cast<int>(shape.sharding.accumulator)]
       << (shape.sharding.release ? " release" : "") << ", clip "
       << (shape.sharding.clips ? kClipNames[static_cast<int>(shape.sharding.clip)] : "off") << ", "
       << shape.all_micro_batches() << " micro-batches, buckets of " << shape.bucket_bytes << ", "
       << kRuleNames[static_cast<int>(shape.rule)] << (shape.beta1 == 0 ? " without momentum" : "")
       << ", state " << kStateNames[static_cast<int>(shape.state)] << ", weights "
       << kWeightNames[static_cast<int>(shape.weight)] << (shape.tied ? ", tied" : "");
  if (shape.group > 0) *out << ", groups of " << shape.group;
  if (shape.sharding.group > 0) *out << ", divided among " << shape.sharding.group;
}

inline bool is_v1(WeightFormat format) {
  return format == WeightFormat::kCorrected24 || format == WeightFormat::kCorrected32;
}

/// One rank's run.
class Rank {
 public:
  Rank(Communicator& communicator, const RunShape& setup)
      : setup_(setup),
        rank_(communicator.rank()),
        backend_(make_cpu_backend({1})),
        ledger_(*backend_),
        rule_(make_elementwise_rule(*backend_, options(setup))),
        layout_(parameters(setup.tied), units(*rule_), setup.world_size),
        state_(ledger_, layout_, *rule_, rank_, setup.model(), setup.sharding),
        plan_(layout_, setup.bucket_bytes, static_cast<int64_t>(size_of(setup.model()))),
        gradients_(ledger_, plan_, rank_, {setup.sharding, setup.model()}),
        groups_(communicator, gradients_.placement()) {
    ShardedOptimizerOptions o;
    o.clip_norm = setup.sharding.clips ? setup.clip_norm : 0;
    o.wire = setup.model();
    if (setup.group > 0) o.order = {ReductionOrder::Kind::kTwoLevel, setup.group};
    optimizer_ =
        std::make_unique<ShardedOptimizer>(groups_, ledger_, state_, gradients_, *rule_, o);
    optimizer_->initialize([&](int tensor, RowRange rows, std::span<float> out) {
      for (size_t i = 0; i < out.size(); ++i) {
        out[i] = 0.01f * gradient_value(
                             99, 0, tensor,
                             rows.first * layout_.parameter(tensor).cols + static_cast<int64_t>(i));
      }
    });
  }

  /// One step; `value(micro_batch, tensor, element)` is its gradient.
  template <class Value>
  StepOutcome step(const Value& value, double learning_rate = 1e-2) {
    const int64_t count = setup_.all_micro_batches();
    const int64_t rounds = (count + setup_.world_size - 1) / setup_.world_size;
    const bool each = setup_.sharding.reduces_each();
    int64_t tokens = 0;
    for (int64_t k = 0; k < rounds; ++k) {
      const int64_t micro_batch = k * setup_.world_size + rank_;
      const auto contributors =
          static_cast<int>(std::min<int64_t>(setup_.world_size, count - k * setup_.world_size));
      const bool last = k + 1 == rounds;
      if (micro_batch < count) tokens += setup_.tokens;
      Round round{contributors, k == 0,
                  last,         learning_rate,
                  tokens,       static_cast<double>(contributors) / static_cast<double>(count)};
      if (!each) round.last = true;
      if (each || k == 0) optimizer_->begin_round(round);
      pass(
          [&](int t, int64_t i) {
            return micro_batch < count ? value(micro_batch, t, i) : std::nanf("");
          },
          k > 0 && !each, each || last);
    }
    return optimizer_->step(learning_rate, tokens);
  }

  ShardedState& state() { return state_; }
  ShardedOptimizer& optimizer() { return *optimizer_; }
  MemoryLedger& ledger() { return ledger_; }
  const ShardLayout& layout() const { return layout_; }
  UpdateRule& rule() { return *rule_; }
  Gradients& gradients() { return gradients_; }
  /// Whole weights of every layer as the forward and backward of the latest pass found them.
  const std::string& seen() const { return seen_; }
  /// Every state that this rank holds, those of other owners too.
  std::string held() const {
    std::string all;
    for (int t = 0; t < layout_.tensors(); ++t) {
      const RowRange rows = layout_.rows_of(t, state_.placement().states());
      for (size_t s = 0; s < state_.state_specs(t).size(); ++s) {
        const auto bytes = state_.state_bytes(t, s, rows);
        all.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      }
    }
    return all;
  }
  /// A forward alone, which an evaluation would be.
  void evaluate() {
    seen_.clear();
    optimizer_->begin_pass(false);
    forward();
  }

 private:
  void look_at(int layer) {
    optimizer_->before_layer(layer);
    const auto weights = optimizer_->model_weights();
    for (int t = 0; t < layout_.tensors(); ++t) {
      if (layout_.parameter(t).layer != layer) continue;
      const Tensor& w = weights[static_cast<size_t>(t)];
      seen_.append(w.as<char>(), w.bytes());
    }
  }
  void forward() {
    for (int layer = 0; layer < kLastLayer; ++layer) look_at(layer);
    if (setup_.tied) look_at(0);
    look_at(kLastLayer);
  }

  // A model's pass: looks at the weights where it may and writes gradients when a model would.
  template <class Value>
  void pass(const Value& value, bool add, bool reduces) {
    seen_.clear();
    optimizer_->begin_pass(true);
    forward();
    if (setup_.tied) write(0, value, add);  // the head's part, long before layer 0 is final
    for (int layer = kLastLayer; layer >= 0; --layer) {
      if (layer != kLastLayer && layer != 0) look_at(layer);
      if (!(setup_.tied && layer == 0)) write(layer, value, add);
      if (reduces) optimizer_->layer_ready(layer);
    }
  }

  template <class Value>
  void write(int layer, const Value& value, bool add) {
    for (int t = 0; t < layout_.tensors(); ++t) {
      if (layout_.parameter(t).layer != layer) continue;
      const Tensor& gradient = gradients_.local()[static_cast<size_t>(t)];
      for (int64_t i = 0; i < gradient.elements(); ++i) {
        const float v = value(t, i);
        if (gradient.dtype == DType::kFP32) {
          float& sum = gradient.as<float>()[i];
          sum = add ? sum + v : v;
        } else {
          gradient.as<uint16_t>()[i] = float_to_bf16(v);
        }
      }
    }
  }

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
  int rank_;
  std::unique_ptr<Backend> backend_;
  MemoryLedger ledger_;
  std::unique_ptr<UpdateRule> rule_;
  ShardLayout layout_;
  ShardedState state_;
  BucketPlan plan_;
  Gradients gradients_;
  ShardGroups groups_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
  std::string seen_;
};

using Bytes = std::map<std::pair<int, std::string>, std::string>;

/// All ranks' shards put together, by (tensor, state), and the weights that every rank's model read
/// in the last step and after it.
struct Result {
  Bytes state;
  std::vector<std::string> seen;  // by rank
  std::vector<std::string> held;  // states, by rank
  StepOutcome last;
};

inline std::string bytes_of_shard(ShardedState& state) {
  std::string all;
  for (const auto& view : state.shard_views()) {
    all.append(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
  }
  return all;
}

/// `value(step, micro_batch, tensor, element)`.
template <class Value>
Result run(const RunShape& setup, const Value& value) {
  Result result;
  std::vector<Bytes> shards(static_cast<size_t>(setup.world_size));
  result.seen.resize(shards.size());
  result.held.resize(shards.size());
  std::mutex mutex;
  run_ranks(setup.world_size, [&](Communicator& communicator) {
    Rank rank(communicator, setup);
    StepOutcome outcome;
    for (int s = 0; s < setup.steps; ++s) {
      outcome = rank.step([&](int64_t m, int t, int64_t i) { return value(s, m, t, i); });
    }
    const auto r = static_cast<size_t>(communicator.rank());
    const auto own = static_cast<size_t>(rank.state().placement().own());
    for (const auto& view : rank.state().shard_views()) {
      shards[own][{view.tensor, view.state}] =
          std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
    }
    result.seen[r] = rank.seen();
    rank.evaluate();
    result.seen[r] += rank.seen();
    result.held[r] = rank.held();
    const std::lock_guard lock(mutex);
    result.last = outcome;
  });
  for (auto& shard : shards) {
    for (auto& [key, bytes] : shard) result.state[key] += bytes;
  }
  return result;
}

}  // namespace flashshard::test
