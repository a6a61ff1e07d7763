// Predicted bytes are the bytes that a model allocates, planned close to the least possible; the
// rotary table is exact.
#include "runtime/model/llama_activations.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>
#include <utility>

#include "kernels/backend.h"
#include "planned_tensors.h"
#include "runtime/model/llama.h"

namespace flashshard {
namespace {

struct ActivationCase {
  LlamaOptions options;
  ActivationShape shape;
};

constexpr Recompute kLevels[] = {Recompute::kNone, Recompute::kElementwise, Recompute::kFeedForward,
                                 Recompute::kFull};

// (vocabulary, feed-forward): which tensors are the largest differs.
class ActivationBytes : public ::testing::TestWithParam<
                            std::tuple<std::tuple<int64_t, int64_t>, DType, ActivationUse, bool>> {
 protected:
  static ActivationCase make() {
    const auto& [sizes, dtype, use, tied] = GetParam();
    ActivationCase c;
    c.options.vocab_size = std::get<0>(sizes);
    c.options.hidden_size = 24;
    c.options.layers = 3;
    c.options.heads = 6;
    c.options.kv_heads = 3;
    c.options.head_dim = 6;
    c.options.feed_forward_size = std::get<1>(sizes);
    c.options.tied_embeddings = tied;
    c.options.dtype = dtype;
    c.shape = {.sequences = 3, .sequence_length = 11, .use = use};
    return c;
  }
};

TEST_P(ActivationBytes, PredictedEqualTaggedOfAModel) {
  auto [options, shape] = make();
  for (const Recompute level : kLevels) {
    shape.recompute = level;
    const auto backend = make_cpu_backend({.threads = 1});
    MemoryLedger ledger(*backend);
    const Llama model(ledger, options, shape);
    EXPECT_EQ(ledger.tagged()[MemoryClass::kActivations], activation_bytes(options, shape));
    EXPECT_EQ(ledger.tagged()[MemoryClass::kOther], llama_other_bytes(*backend, options, shape));
    EXPECT_EQ(ledger.tagged().total(),
              activation_bytes(options, shape) + llama_other_bytes(*backend, options, shape));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ActivationBytes,
    ::testing::Combine(::testing::Values(std::tuple<int64_t, int64_t>{61, 17},
                                         std::tuple<int64_t, int64_t>{61, 400},
                                         std::tuple<int64_t, int64_t>{50000, 40}),
                       ::testing::Values(DType::kBF16, DType::kFP32),
                       ::testing::Values(ActivationUse::kTraining, ActivationUse::kInference,
                                         ActivationUse::kGeneration),
                       ::testing::Bool()));

LlamaOptions small_options(int layers) {
  LlamaOptions o;
  o.vocab_size = 256;
  o.hidden_size = 64;
  o.layers = layers;
  o.heads = 4;
  o.kv_heads = 2;
  o.head_dim = 16;
  o.feed_forward_size = 176;
  return o;
}

/// What a fifth layer adds to the bytes that no plan can be below.
int64_t bytes_of_a_layer(const ActivationShape& shape) {
  return plan_activations(small_options(5), shape).lower_bound() -
         plan_activations(small_options(4), shape).lower_bound();
}

// Elements of bf16 per token: input 64, middle 64, q‖k‖v 128, attention 64, gate‖up 352; in fp32
// two inverse rms and four log-sum-exp. All are multiples of the alignment.
TEST(ActivationBytesOfALayer, AreWhatItsBackwardReadsAndDoesNotRecompute) {
  ActivationShape shape{2, 32, ActivationUse::kTraining, Recompute::kNone};
  const int64_t kept = 64 * (2 * (64 + 64 + 128 + 64) + 4 * (2 + 4));
  EXPECT_EQ(bytes_of_a_layer(shape), kept + 64 * 2 * (352 + 64 + 64 + 176));
  shape.recompute = Recompute::kElementwise;
  EXPECT_EQ(bytes_of_a_layer(shape), kept + 64 * 2 * 352);
  shape.recompute = Recompute::kFeedForward;
  EXPECT_EQ(bytes_of_a_layer(shape), kept);
}

TEST(ActivationBytesOfALayer, AreOneRowOfTheResidualStreamPerTokenWhenAllIsRecomputed) {
  for (const DType dtype : {DType::kBF16, DType::kFP32}) {
    const ActivationShape shape{2, 32, ActivationUse::kTraining, Recompute::kFull};
    const auto row = static_cast<int64_t>(64 * 64 * size_of(dtype));
    LlamaOptions two = small_options(2);
    two.dtype = dtype;
    const int64_t base = plan_activations(two, shape).lower_bound() - 2 * row;
    for (const int layers : {3, 4, 8, 40}) {
      LlamaOptions o = small_options(layers);
      o.dtype = dtype;
      const ActivationPlan plan = plan_activations(o, shape);
      EXPECT_EQ(plan.lower_bound(), base + layers * row) << layers;
      EXPECT_LE(static_cast<double>(plan.bytes()), 1.01 * static_cast<double>(base + layers * row))
          << layers;
    }
  }
}

TEST(ActivationBytesOfALayer, AreNothingInInferenceAndKeysAndValuesInGeneration) {
  EXPECT_EQ(bytes_of_a_layer({2, 32, ActivationUse::kInference}), 0);
  EXPECT_EQ(bytes_of_a_layer({1, 32, ActivationUse::kGeneration}), 32 * 2 * 2 * (2 * 16));
}

struct PlanCase {
  std::string name;
  int hidden, layers, heads, kv_heads, feed_forward, vocabulary;
  double largest_loss;  // bytes over the lower bound
};

class PlanOfALlama : public ::testing::TestWithParam<PlanCase> {
 protected:
  static LlamaOptions options() {
    const PlanCase& c = GetParam();
    LlamaOptions o;
    o.hidden_size = c.hidden;
    o.layers = c.layers;
    o.heads = c.heads;
    o.kv_heads = c.kv_heads;
    o.head_dim = c.hidden / c.heads;
    o.feed_forward_size = c.feed_forward;
    o.vocab_size = c.vocabulary;
    return o;
  }
  static void expect_good(const ActivationPlan& plan) {
    expect_no_overlap(plan);
    EXPECT_LE(static_cast<double>(plan.bytes()),
              GetParam().largest_loss * static_cast<double>(plan.lower_bound()));
  }
};

TEST_P(PlanOfALlama, OverlapsNothingAndLosesLittleToTheLowerBound) {
  for (const auto& [sequences, length] : {std::pair{1, 1}, {1, 100}, {8, 256}}) {
    for (const Recompute level : kLevels) {
      SCOPED_TRACE(testing::Message()
                   << sequences * length << " tokens, level " << static_cast<int>(level));
      expect_good(
          plan_activations(options(), {sequences, length, ActivationUse::kTraining, level}));
    }
    for (const ActivationUse use : {ActivationUse::kInference, ActivationUse::kGeneration}) {
      expect_good(plan_activations(options(), {sequences, length, use}));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, PlanOfALlama,
                         ::testing::Values(PlanCase{"tiny", 32, 2, 2, 1, 64, 256, 1.08},
                                           PlanCase{"quickstart", 192, 6, 6, 2, 512, 256, 1.02},
                                           PlanCase{"M25", 512, 8, 8, 8, 1408, 256, 1.02},
                                           PlanCase{"B1", 2048, 16, 32, 8, 8192, 128256, 1.02},
                                           PlanCase{"B8", 4096, 32, 32, 8, 14336, 128256, 1.02}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace flashshard
