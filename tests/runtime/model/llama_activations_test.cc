// Predicted bytes are the bytes that a model allocates; the rotary table is exact.
#include "runtime/model/llama_activations.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "kernels/backend.h"
#include "runtime/model/llama.h"

namespace flashshard {
namespace {

struct ActivationCase {
  LlamaOptions options;
  ActivationShape shape;
};

// (vocabulary, feed-forward): which group is the largest in scratch differs.
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
  const auto& [options, shape] = make();
  const auto backend = make_cpu_backend({.threads = 1});
  MemoryLedger ledger(*backend);
  const Llama model(ledger, options, shape);
  EXPECT_EQ(ledger.tagged()[MemoryClass::kActivations], activation_bytes(options, shape));
  EXPECT_EQ(ledger.tagged()[MemoryClass::kOther], llama_other_bytes(*backend, options, shape));
  EXPECT_EQ(ledger.tagged().total(),
            activation_bytes(options, shape) + llama_other_bytes(*backend, options, shape));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ActivationBytes,
    ::testing::Combine(::testing::Values(std::tuple<int64_t, int64_t>{61, 17},
                                         std::tuple<int64_t, int64_t>{61, 400},
                                         std::tuple<int64_t, int64_t>{50000, 40}),
                       ::testing::Values(DType::kBF16, DType::kFP32),
                       ::testing::Values(ActivationUse::kTraining, ActivationUse::kInference),
                       ::testing::Bool()));

TEST(ActivationBytesFormula, GrowsByOneBlockPerLayerInTrainingAndNotInInference) {
  LlamaOptions o;
  o.vocab_size = 256;
  o.hidden_size = 64;
  o.layers = 4;
  o.heads = o.kv_heads = 4;
  o.head_dim = 16;
  o.feed_forward_size = 176;
  LlamaOptions deeper = o;
  deeper.layers = 5;
  const ActivationShape training{2, 32, ActivationUse::kTraining};
  const ActivationShape inference{2, 32, ActivationUse::kInference};
  // bf16: input 64, middle 64, q‖k‖v 192, attention 64, gate‖up 352; fp32: two inverse rms, four
  // log-sum-exp.
  EXPECT_EQ(activation_bytes(deeper, training) - activation_bytes(o, training),
            2 * 32 * (2 * (64 + 64 + 192 + 64 + 352) + 4 * 6));
  EXPECT_EQ(activation_bytes(deeper, inference), activation_bytes(o, inference));
}

}  // namespace
}  // namespace flashshard
