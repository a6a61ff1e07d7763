// Reading a text token by token: the scores are those of reading it whole.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/error.h"
#include "llama_session.h"
#include "poisoning_backend.h"
#include "runtime/model/llama_activation_graph.h"

namespace flashshard {
namespace {

struct TextCase {
  DType dtype;
  int heads, kv_heads;
  bool bias = false;
};

LlamaOptions options(const TextCase& c) {
  LlamaOptions o = tiny_options(true, c.dtype);
  o.layers = 3;
  o.heads = c.heads;
  o.kv_heads = c.kv_heads;
  o.head_dim = 6;
  o.qkv_bias = c.bias;
  return o;
}

ActivationShape text_of(int64_t length) { return {1, length, ActivationUse::kGeneration}; }

std::vector<int32_t> tokens_of(int64_t count) { return make_batch(61, 1, count, 9).inputs; }

/// Largest difference, as a share of the largest score.
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::abs(double{a[i]} - double{b[i]}));
    largest = std::max(largest, std::abs(double{a[i]}));
  }
  return difference / largest;
}

class ReadingAText : public ::testing::TestWithParam<TextCase> {
 protected:
  LlamaSession session(int64_t length) const {
    return LlamaSession(options(GetParam()), text_of(length), GetParam().dtype);
  }
  /// Products of one row and of many may add in another order; all else has the same bits.
  double allowed() const { return GetParam().dtype == DType::kFP32 ? 1e-5 : 2e-2; }
};

TEST_P(ReadingAText, TokenByTokenGivesTheScoresOfReadingItWhole) {
  const int64_t length = 140;  // three tiles of attention
  LlamaSession whole = session(length), stepwise = session(length);
  const std::vector<int32_t> text = tokens_of(length);
  const std::span<const int32_t> all(text);
  stepwise.model().next_token_logits(all.first(3));
  for (size_t count = 4; count <= text.size(); ++count) {
    const std::vector<float> scores = stepwise.model().continue_with(text[count - 1]);
    ASSERT_EQ(stepwise.model().remembered_tokens(), static_cast<int64_t>(count));
    ASSERT_LE(distance(scores, whole.model().next_token_logits(all.first(count))), allowed())
        << count << " tokens";
  }
}

TEST_P(ReadingAText, ForgetsTheLastOne) {
  LlamaSession llama = session(12), fresh = session(12);
  const std::vector<int32_t> text = tokens_of(12);
  llama.model().next_token_logits(text);
  EXPECT_EQ(llama.model().remembered_tokens(), 12);
  const std::span<const int32_t> other = std::span(text).last(4);
  EXPECT_EQ(llama.model().next_token_logits(other), fresh.model().next_token_logits(other));
  EXPECT_EQ(llama.model().remembered_tokens(), 4);
  EXPECT_EQ(llama.model().continue_with(7), fresh.model().continue_with(7));
}

TEST_P(ReadingAText, IsNotDisturbedByAnEvaluation) {
  LlamaSession llama = session(12), fresh = session(12);
  const std::vector<int32_t> text = tokens_of(5);
  llama.model().next_token_logits(text);
  fresh.model().next_token_logits(text);
  EXPECT_GT(llama.model().evaluate(make_batch(61, 1, 12, 2).view()).loss_sum, 0);
  EXPECT_EQ(llama.model().continue_with(3), fresh.model().continue_with(3));
}

TEST_P(ReadingAText, TouchesActivationsOnlyWithinTheirPlannedLifetimes) {
  const LlamaOptions o = options(GetParam());
  LlamaSession plain = session(10);
  auto owned = std::make_unique<PoisoningBackend>(make_cpu_backend({.threads = 1}));
  PoisoningBackend& backend = *owned;
  LlamaSession poisoned(o, text_of(10), GetParam().dtype, std::move(owned));
  const ActivationPlan plan = plan_activations(o, text_of(10));
  const std::vector<int32_t> text = tokens_of(6);

  backend.begin_pass(plan);
  EXPECT_EQ(poisoned.model().next_token_logits(text), plain.model().next_token_logits(text));
  EXPECT_EQ(backend.operations(), LlamaActivationGraph(o, text_of(10)).steps());
  for (const int32_t token : {1, 2, 3, 4}) {
    backend.begin_pass(plan);
    EXPECT_EQ(poisoned.model().continue_with(token), plain.model().continue_with(token));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, ReadingAText,
                         ::testing::Values(TextCase{DType::kFP32, 6, 3},
                                           TextCase{DType::kBF16, 6, 3},
                                           TextCase{DType::kFP32, 5, 1, true},
                                           TextCase{DType::kBF16, 4, 4, true}),
                         [](const auto& test) {
                           return (test.param.dtype == DType::kFP32 ? "Fp32Heads" : "Bf16Heads") +
                                  std::to_string(test.param.heads) + "By" +
                                  std::to_string(test.param.kv_heads);
                         });

template <class Call>
ExitCode refusal(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::kDone;
}

constexpr TextCase kPlain{DType::kFP32, 4, 2};

TEST(ContinuingAText, IsRefusedWithoutOneOrWithoutRoom) {
  LlamaSession llama(options(kPlain), text_of(4), DType::kFP32);
  const auto next = [&] { return refusal([&] { llama.model().continue_with(1); }); };
  EXPECT_EQ(next(), ExitCode::kInternal);  // nothing read
  llama.model().next_token_logits(tokens_of(3));
  EXPECT_EQ(next(), ExitCode::kDone);
  EXPECT_EQ(next(), ExitCode::kInternal);  // full
  EXPECT_EQ(llama.model().remembered_tokens(), 4);
  llama.model().next_token_logits(tokens_of(2));
  llama.model().bind(llama.weights(), {});
  EXPECT_EQ(next(), ExitCode::kInternal);  // read by other weights
}

TEST(ContinuingAText, IsRefusedByAModelNotMadeForIt) {
  for (const ActivationUse use : {ActivationUse::kTraining, ActivationUse::kInference}) {
    LlamaSession llama(options(kPlain), {1, 8, use}, DType::kFP32);
    llama.model().next_token_logits(tokens_of(3));
    EXPECT_EQ(llama.model().remembered_tokens(), 0);
    EXPECT_EQ(refusal([&] { llama.model().continue_with(1); }), ExitCode::kInternal);
  }
}

TEST(ContinuingAText, KeepsTheTextWhenATokenIsOutsideTheVocabulary) {
  LlamaSession llama(options(kPlain), text_of(8), DType::kFP32);
  llama.model().next_token_logits(tokens_of(3));
  EXPECT_EQ(refusal([&] { llama.model().continue_with(61); }), ExitCode::kBadData);
  EXPECT_EQ(llama.model().remembered_tokens(), 3);
}

}  // namespace
}  // namespace flashshard
