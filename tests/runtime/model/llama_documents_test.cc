// Attention within documents: transformers with a block-diagonal mask, documents of a sequence as
// sequences of their own, what the plan says of it, what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "golden_model.h"
#include "kernels/error.h"
#include "poisoning_backend.h"
#include "runtime/model/llama_activation_graph.h"

namespace flashshard {
namespace {

using ::testing::HasSubstr;

ActivationShape shape_of(int64_t sequences, int64_t length,
                         Recompute recompute = Recompute::kElementwise) {
  return {sequences, length, ActivationUse::kTraining, recompute, AttentionScope::kDocument};
}

/// A sequence of documents of these lengths.
TokenBatch packed(const std::vector<int64_t>& lengths, uint32_t key) {
  const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  TokenBatch batch = make_batch(61, 1, total, key);
  for (const int64_t length : lengths) {
    const auto first = static_cast<int32_t>(batch.document_starts.size());
    batch.document_starts.insert(batch.document_starts.end(), static_cast<size_t>(length), first);
  }
  return batch;
}

TokenBatch part_of(const TokenBatch& batch, int64_t first, int64_t length) {
  TokenBatch part;
  part.sequences = 1;
  part.sequence_length = length;
  part.inputs.assign(batch.inputs.begin() + first, batch.inputs.begin() + first + length);
  part.targets.assign(batch.targets.begin() + first, batch.targets.begin() + first + length);
  return part;
}

class DocumentsGolden : public ::testing::Test {
 protected:
  LlamaSession session(DType dtype) const {
    return LlamaSession(golden_options(golden_.facts["options"], dtype),
                        shape_of(batch_.sequences, batch_.sequence_length), DType::kFP32);
  }
  /// Scores behind each token, of its document alone.
  std::vector<float> logits(DType dtype) const {
    LlamaSession llama = session(dtype);
    std::vector<float> all;
    for (size_t t = 0; t < batch_.inputs.size(); ++t) {
      const size_t length = static_cast<size_t>(batch_.sequence_length);
      const size_t first = t / length * length + static_cast<size_t>(batch_.document_starts[t]);
      const auto next =
          llama.model().next_token_logits({batch_.inputs.data() + first, t + 1 - first});
      all.insert(all.end(), next.begin(), next.end());
    }
    return all;
  }
  Golden golden_ = read_golden("documents", 2);
  TokenBatch batch_ = batch_of(golden_);
};

TEST_F(DocumentsGolden, Fp32LossAndGradientsEqualTransformersWithABlockDiagonalMask) {
  LlamaSession llama = session(DType::kFP32);
  const double expected = golden_.facts["loss_sum"];
  EXPECT_NEAR(llama.model().evaluate(batch_.view()).loss_sum, expected, 1e-5 * expected);
  EXPECT_NEAR(llama.model().forward_backward(batch_.view(), {}, false).loss_sum, expected,
              1e-5 * expected);
  for (size_t t = 0; t < golden_.gradients.size(); ++t) {
    EXPECT_LT(relative_error(read_values(llama.gradients()[t]), golden_.gradients[t]), 1e-4)
        << llama.parameters()[t].name;
  }
}

TEST_F(DocumentsGolden, LogitsOfADocumentAloneEqualTransformersInTheSequence) {
  EXPECT_LT(relative_error(logits(DType::kFP32), golden_.logits), 1e-5);
  const double torch_error = golden_.facts["error_of_torch_bf16_logits"];
  EXPECT_LT(relative_error(logits(DType::kBF16), golden_.logits), 1.5 * torch_error);
}

TEST_F(DocumentsGolden, Bf16IsAsCloseToTheExactGradientAsPyTorchInBf16) {
  LlamaSession llama = session(DType::kBF16);
  const double expected = golden_.facts["loss_sum"];
  EXPECT_NEAR(llama.model().forward_backward(batch_.view(), {}, false).loss_sum, expected,
              5e-3 * expected);
  for (size_t t = 0; t < golden_.gradients.size(); ++t) {
    const double torch_error = golden_.facts["error_of_torch_bf16_gradients"][t];
    EXPECT_LT(relative_error(read_values(llama.gradients()[t]), golden_.gradients[t]),
              1.5 * torch_error)
        << llama.parameters()[t].name;
  }
}

TEST(LlamaDocuments, OfASequenceLearnWhatTheyLearnAsSequencesOfTheirOwn) {
  const std::vector<int64_t> lengths = {1, 17, 64, 3, 70};
  const TokenBatch batch = packed(lengths, 5);
  for (const DType dtype : {DType::kFP32, DType::kBF16}) {
    LlamaSession llama(tiny_options(true, dtype), shape_of(1, 155), DType::kFP32);
    LlamaSession alone(tiny_options(true, dtype), {1, 155}, DType::kFP32);
    const double loss = llama.model().forward_backward(batch.view(), {}, false).loss_sum;
    double sum = 0;
    int64_t first = 0;
    for (const int64_t length : lengths) {
      const TokenBatch document = part_of(batch, first, length);
      sum += alone.model().forward_backward(document.view(), {}, first > 0).loss_sum;
      first += length;
    }
    // Sums over tokens run in another order; in fp32 that is all.
    EXPECT_NEAR(loss, sum, (dtype == DType::kFP32 ? 1e-6 : 1e-3) * sum);
    for (size_t t = 0; t < llama.gradients().size(); ++t) {
      EXPECT_LT(
          relative_error(read_values(llama.gradients()[t]), read_values(alone.gradients()[t])),
          dtype == DType::kFP32 ? 1e-5 : 2e-2)
          << llama.parameters()[t].name;
    }
  }
}

// A document's last token, the one that ends it, is asked for the first of the next document, as
// everywhere: nothing is masked, and it sees its own document alone.
TEST(LlamaDocuments, TheTargetBehindADocumentCountsAndIsScoredByTheDocument) {
  TokenBatch batch = packed({4, 6}, 9);
  LlamaSession llama(tiny_options(false, DType::kFP32), shape_of(1, 10), DType::kFP32);
  const LossResult all = llama.model().evaluate(batch.view());
  EXPECT_EQ(all.token_count, 10);
  std::vector<int32_t> targets(10, -1);
  std::swap(targets[3], batch.targets[3]);
  const LossResult rest = llama.model().evaluate(batch.view());
  std::swap(targets, batch.targets);
  const LossResult boundary = llama.model().evaluate(batch.view());
  EXPECT_EQ(boundary.token_count, 1);
  EXPECT_NEAR(boundary.loss_sum + rest.loss_sum, all.loss_sum, 1e-4);
  for (size_t t = 4; t < 10; ++t) batch.inputs[t] = (batch.inputs[t] + 1) % 61;
  EXPECT_EQ(llama.model().evaluate(batch.view()).loss_sum, boundary.loss_sum);
  batch.inputs[0] = (batch.inputs[0] + 1) % 61;
  EXPECT_NE(llama.model().evaluate(batch.view()).loss_sum, boundary.loss_sum);
}

TEST(LlamaDocuments, WithoutStartsASequenceIsOneDocument) {
  LlamaSession planned(tiny_options(true, DType::kBF16), shape_of(2, 9), DType::kFP32);
  LlamaSession plain(tiny_options(true, DType::kBF16), {2, 9}, DType::kFP32);
  TokenBatch batch = make_batch(61, 2, 9, 3);
  const double loss = plain.model().forward_backward(batch.view(), {}, false).loss_sum;
  EXPECT_EQ(planned.model().forward_backward(batch.view(), {}, false).loss_sum, loss);
  EXPECT_EQ(planned.gradient_values(), plain.gradient_values());
  batch.document_starts.assign(18, 0);
  EXPECT_EQ(planned.model().forward_backward(batch.view(), {}, false).loss_sum, loss);
  EXPECT_EQ(planned.gradient_values(), plain.gradient_values());
}

class DocumentsRecompute : public ::testing::TestWithParam<Recompute> {};

TEST_P(DocumentsRecompute, GivesTheBitsOfKeepingEverythingWithinThePlannedLifetimes) {
  const TokenBatch batch = packed({3, 8, 1, 4}, 7);
  LlamaOptions options = tiny_options(false, DType::kBF16);
  options.layers = 3;
  options.qkv_bias = true;
  const ActivationShape shape = shape_of(1, 16, GetParam());
  LlamaSession keeps(options, shape_of(1, 16, Recompute::kNone), DType::kFP32);
  auto owned = std::make_unique<PoisoningBackend>(make_cpu_backend({.threads = 1}));
  PoisoningBackend& backend = *owned;
  LlamaSession poisoned(options, shape, DType::kFP32, std::move(owned));
  const ActivationPlan plan = plan_activations(options, shape);
  backend.begin_pass(plan);
  EXPECT_EQ(poisoned.model().forward_backward(batch.view(), {}, false).loss_sum,
            keeps.model().forward_backward(batch.view(), {}, false).loss_sum);
  EXPECT_EQ(poisoned.gradient_values(), keeps.gradient_values());
  EXPECT_EQ(backend.operations(), LlamaActivationGraph(options, shape).steps());
  ActivationShape without = shape;
  without.attention = AttentionScope::kSequence;
  EXPECT_LE(plan.bytes() - activation_bytes(options, without), 2 * 256) << "16 tokens of 4 bytes";
}

INSTANTIATE_TEST_SUITE_P(All, DocumentsRecompute,
                         ::testing::Values(Recompute::kNone, Recompute::kElementwise,
                                           Recompute::kFeedForward, Recompute::kFull),
                         [](const auto& level) {
                           return "level" + std::to_string(static_cast<int>(level.param));
                         });

std::string refusal(LlamaSession& llama, const TokenBatch& batch) {
  try {
    llama.model().evaluate(batch.view());
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kInternal);
    return error.what();
  }
  return "nothing thrown";
}

TEST(LlamaDocuments, StartsThatDoNotHoldTogetherAreRefused) {
  LlamaSession llama(tiny_options(true, DType::kFP32), shape_of(2, 3), DType::kFP32);
  TokenBatch batch = make_batch(61, 2, 3, 1);
  const auto refused = [&](std::vector<int32_t> starts) {
    batch.document_starts = std::move(starts);
    return refusal(llama, batch);
  };
  EXPECT_EQ(refused({0, 1, 1, 0, 0, 2}), "nothing thrown");
  EXPECT_THAT(refused({0, 1, 1, 0, 0}), HasSubstr("not as many starts of documents as tokens"));
  EXPECT_THAT(refused({0, 1, 1, 1, 1, 2}), HasSubstr("of token 0 begins at 1"));
  EXPECT_THAT(refused({0, 2, 2, 0, 0, 2}), HasSubstr("of token 1 begins at 2"));
  EXPECT_THAT(refused({0, 1, 0, 0, 0, 2}), HasSubstr("of token 2 begins at 0"));
  LlamaSession other(tiny_options(true, DType::kFP32), {2, 3}, DType::kFP32);
  batch.document_starts.assign(6, 0);
  EXPECT_THAT(refusal(other, batch), HasSubstr("was not planned for them"));
}

}  // namespace
}  // namespace flashshard
