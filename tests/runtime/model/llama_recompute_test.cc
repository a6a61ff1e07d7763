// Recomputation and shared memory change no bit: every level gives the same losses and gradients,
// reads no weight that was not announced, and touches activations only within their lifetimes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "llama_session.h"
#include "poisoning_backend.h"
#include "runtime/model/llama_activation_graph.h"

namespace flashshard {
namespace {

constexpr Recompute kLevels[] = {Recompute::kNone, Recompute::kElementwise, Recompute::kFeedForward,
                                 Recompute::kFull};

/// With biases where the tables are not tied.
LlamaOptions options(DType dtype, int layers, bool tied) {
  LlamaOptions o = tiny_options(tied, dtype);
  o.layers = layers;
  o.heads = 6;
  o.kv_heads = 3;
  o.head_dim = 6;
  o.qkv_bias = !tied;
  return o;
}

struct Level {
  Recompute recompute;
  DType dtype;
};

class RecomputeLevel : public ::testing::TestWithParam<Level> {
 protected:
  LlamaSession session(int layers, int64_t sequences, int64_t length, Recompute recompute,
                       bool tied = true) const {
    return LlamaSession(options(GetParam().dtype, layers, tied),
                        {sequences, length, ActivationUse::kTraining, recompute}, DType::kFP32);
  }
  LlamaSession session(int layers, int64_t sequences, int64_t length) const {
    return session(layers, sequences, length, GetParam().recompute);
  }
};

/// Loss and gradients of two micro-batches, the second added to the first.
std::pair<double, std::vector<std::vector<std::byte>>> accumulated(LlamaSession& llama,
                                                                   const TokenBatch& batch) {
  TokenBatch second = batch;
  std::swap(second.inputs, second.targets);
  double loss = llama.model().forward_backward(batch.view(), {}, false).loss_sum;
  loss += llama.model().forward_backward(second.view(), {}, true).loss_sum;
  std::vector<std::vector<std::byte>> gradients;
  for (const Tensor& gradient : llama.gradients()) gradients.push_back(bytes_of(gradient));
  return {loss, std::move(gradients)};
}

TEST_P(RecomputeLevel, GivesTheBitsOfKeepingEverything) {
  for (const auto& [layers, sequences, length] :
       std::vector<std::array<int, 3>>{{1, 2, 11}, {2, 1, 1}, {3, 2, 11}, {4, 1, 70}}) {
    for (const bool tied : {true, false}) {
      LlamaSession keeps = session(layers, sequences, length, Recompute::kNone, tied);
      LlamaSession llama = session(layers, sequences, length, GetParam().recompute, tied);
      const TokenBatch batch = make_batch(61, sequences, length, 4);
      EXPECT_EQ(accumulated(llama, batch), accumulated(keeps, batch))
          << layers << " layers, " << sequences << " x " << length;
    }
  }
}

TEST_P(RecomputeLevel, GivesAMicroBatchSmallerThanPlannedTheSameBits) {
  LlamaSession large = session(3, 3, 20);
  LlamaSession exact = session(3, 2, 9);
  const TokenBatch batch = make_batch(61, 2, 9, 3);
  EXPECT_EQ(accumulated(large, batch), accumulated(exact, batch));
}

TEST_P(RecomputeLevel, AnnouncesLayersAsWithoutAndReadsOnlyTheirWeights) {
  const int layers = 3;
  LlamaSession llama = session(layers, 2, 11);
  const TokenBatch batch = make_batch(61, 2, 11, 1);
  const double loss = llama.model().forward_backward(batch.view(), {}, false).loss_sum;
  const auto gradients = llama.gradient_values();
  std::vector<std::vector<float>> weights;
  for (const Tensor& weight : llama.weights()) weights.push_back(read_values(weight));

  std::vector<int> announced;
  LayerHooks hooks;
  hooks.before_layer = [&](int layer) {
    announced.push_back(layer);
    for (size_t t = 0; t < weights.size(); ++t) {
      const int own = llama.parameters()[t].layer;
      // The head of a tied model reads the table of layer 0, announced just before.
      if (own == layer || (layer == layers + 1 && own == 0)) {
        write_values(llama.weights()[t], weights[t]);
      } else {
        poison(llama.weights()[t]);
      }
    }
  };
  hooks.after_layer_backward = [&](int layer) { announced.push_back(-layer); };
  EXPECT_EQ(llama.model().forward_backward(batch.view(), hooks, false).loss_sum, loss);
  EXPECT_EQ(llama.gradient_values(), gradients);
  EXPECT_THAT(announced, ::testing::ElementsAre(0, 1, 2, 3, 0, 4, -4, 3, -3, 2, -2, 1, -1, 0));
}

TEST_P(RecomputeLevel, TouchesActivationsOnlyWithinTheirPlannedLifetimes) {
  const ActivationShape shape{2, 11, ActivationUse::kTraining, GetParam().recompute};
  for (const int layers : {1, 3}) {
    const LlamaOptions o = options(GetParam().dtype, layers, layers == 1);
    LlamaSession plain(o, shape, DType::kFP32);
    auto owned = std::make_unique<PoisoningBackend>(make_cpu_backend({.threads = 1}));
    PoisoningBackend& backend = *owned;
    LlamaSession poisoned(o, shape, DType::kFP32, std::move(owned));
    const ActivationPlan plan = plan_activations(o, shape);
    const TokenBatch batch = make_batch(61, 2, 11, 6);

    backend.begin_pass(plan);
    EXPECT_EQ(poisoned.model().forward_backward(batch.view(), {}, false).loss_sum,
              plain.model().forward_backward(batch.view(), {}, false).loss_sum);
    EXPECT_EQ(poisoned.gradient_values(), plain.gradient_values());
    EXPECT_EQ(backend.operations(), LlamaActivationGraph(o, shape).steps());
  }
}

std::vector<Level> all_levels() {
  std::vector<Level> all;
  for (const DType dtype : {DType::kBF16, DType::kFP32}) {
    for (const Recompute level : kLevels) all.push_back({level, dtype});
  }
  return all;
}

std::string name_of(const ::testing::TestParamInfo<Level>& info) {
  constexpr const char* kNames[] = {"None", "Elementwise", "FeedForward", "Full"};
  return std::string(kNames[static_cast<size_t>(info.param.recompute)]) +
         (info.param.dtype == DType::kBF16 ? "Bf16" : "Fp32");
}

INSTANTIATE_TEST_SUITE_P(All, RecomputeLevel, ::testing::ValuesIn(all_levels()), name_of);

}  // namespace
}  // namespace flashshard
