// Behaviour of the decoder: derivatives, hooks, accumulation, causality, refusals.
#include "runtime/model/llama.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <string>

#include "kernels/error.h"
#include "llama_session.h"

namespace flashshard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class LlamaTest : public ::testing::TestWithParam<bool> {
 protected:
  // Query heads x head_dim differs from the hidden size, so a swapped dimension shows. Tied with
  // biases as the small Qwen2.5, untied without as Llama 3.
  static LlamaOptions options(bool tied, DType dtype) {
    LlamaOptions o = tiny_options(tied, dtype);
    o.head_dim = 6;
    o.heads = 6;
    o.kv_heads = 3;
    o.layers = 3;
    o.qkv_bias = tied;
    return o;
  }
  LlamaSession session(DType dtype = DType::kFP32, DType gradient_dtype = DType::kFP32) const {
    return LlamaSession(options(GetParam(), dtype), {.sequences = 2, .sequence_length = 11},
                        gradient_dtype);
  }
  TokenBatch batch_ = make_batch(61, 2, 11, 1);
};

double inner_product(std::span<const float> a, std::span<const float> b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// Equal bits in every gradient; a failure names the tensor.
void expect_same(LlamaSession& llama, const std::vector<std::vector<float>>& expected) {
  const auto values = llama.gradient_values();
  for (size_t t = 0; t < values.size(); ++t) {
    EXPECT_TRUE(values[t] == expected[t]) << llama.parameters()[t].name << " differs";
  }
}

TEST_P(LlamaTest, GradientsEqualFiniteDifferencesInRandomDirections) {
  LlamaSession llama = session();
  llama.model().forward_backward(batch_.view(), {}, false);
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (size_t t = 0; t < llama.weights().size(); ++t) {
    const std::vector<float> weight = read_values(llama.weights()[t]);
    const std::vector<float> gradient = read_values(llama.gradients()[t]);
    // Half along the gradient, so that the derivative is large beside fp32 rounding, half random.
    const double gradient_norm = std::sqrt(inner_product(gradient, gradient));
    std::vector<float> direction(weight.size());
    for (float& d : direction) d = normal(random);
    const double random_norm = std::sqrt(inner_product(direction, direction));
    for (size_t i = 0; i < direction.size(); ++i) {
      direction[i] = static_cast<float>(direction[i] / random_norm + gradient[i] / gradient_norm);
    }
    const auto loss_at = [&](double step) {
      std::vector<float> moved = weight;
      for (size_t i = 0; i < moved.size(); ++i) moved[i] += static_cast<float>(step) * direction[i];
      write_values(llama.weights()[t], moved);
      return llama.model().evaluate(batch_.view()).loss_sum;
    };
    const double step = 2e-3;
    const double slope =
        (8 * (loss_at(step) - loss_at(-step)) - (loss_at(2 * step) - loss_at(-2 * step))) /
        (12 * step);
    write_values(llama.weights()[t], weight);
    const double expected = inner_product(gradient, direction);
    EXPECT_NEAR(slope, expected, 2e-3 * std::abs(expected)) << llama.parameters()[t].name;
  }
}

TEST_P(LlamaTest, HooksRunInForwardThenBackwardOrder) {
  LlamaSession llama = session();
  std::vector<std::string> calls;
  const LayerHooks hooks{[&](int layer) { calls.push_back("before " + std::to_string(layer)); },
                         [&](int layer) { calls.push_back("after " + std::to_string(layer)); }};
  std::vector<std::string> forward{"before 0", "before 1", "before 2", "before 3"};
  if (GetParam()) forward.push_back("before 0");
  forward.push_back("before 4");

  llama.model().evaluate(batch_.view(), hooks);
  EXPECT_EQ(calls, forward);

  calls.clear();
  llama.model().forward_backward(batch_.view(), hooks, false);
  std::vector<std::string> both = forward;
  for (const char* call : {"after 4", "before 3", "after 3", "before 2", "after 2", "before 1",
                           "after 1", "after 0"}) {
    both.emplace_back(call);
  }
  EXPECT_EQ(calls, both);
}

TEST_P(LlamaTest, GradientsAreFinalWhenTheirLayerIsDone) {
  LlamaSession llama = session();
  std::vector<std::vector<std::byte>> at_hook(llama.gradients().size());
  LayerHooks hooks;
  hooks.after_layer_backward = [&](int layer) {
    for (size_t t = 0; t < at_hook.size(); ++t) {
      if (llama.parameters()[t].layer == layer) at_hook[t] = bytes_of(llama.gradients()[t]);
    }
  };
  llama.model().forward_backward(batch_.view(), hooks, false);
  for (size_t t = 0; t < at_hook.size(); ++t) {
    EXPECT_TRUE(at_hook[t] == bytes_of(llama.gradients()[t])) << llama.parameters()[t].name;
  }
}

// The contract that gathering weights layer by layer stands on.
TEST_P(LlamaTest, OnlyTheWeightsOfTheAnnouncedLayerAreRead) {
  LlamaSession llama = session();
  const LossResult expected_loss = llama.model().forward_backward(batch_.view(), {}, false);
  const auto expected = llama.gradient_values();
  std::vector<std::vector<float>> weights;
  for (const Tensor& weight : llama.weights()) weights.push_back(read_values(weight));

  const int head = 4;
  LayerHooks hooks;
  hooks.before_layer = [&](int layer) {
    for (size_t t = 0; t < weights.size(); ++t) {
      const int own = llama.parameters()[t].layer;
      const bool announced = own == layer || (GetParam() && layer == head && own == 0);
      if (announced) write_values(llama.weights()[t], weights[t]);
      if (!announced) poison(llama.weights()[t]);
    }
  };
  hooks.after_layer_backward = [&](int layer) {
    for (size_t t = 0; t < weights.size(); ++t) {
      if (llama.parameters()[t].layer == layer) poison(llama.weights()[t]);
    }
  };
  const LossResult loss = llama.model().forward_backward(batch_.view(), hooks, false);
  EXPECT_EQ(loss.loss_sum, expected_loss.loss_sum);
  expect_same(llama, expected);
}

TEST_P(LlamaTest, OverwritingLeavesNothingOfTheOldGradients) {
  LlamaSession llama = session();
  llama.model().forward_backward(batch_.view(), {}, false);
  const auto expected = llama.gradient_values();
  for (const Tensor& gradient : llama.gradients()) poison(gradient);
  llama.model().forward_backward(batch_.view(), {}, false);
  expect_same(llama, expected);
}

TEST_P(LlamaTest, AccumulatingAddsTheGradientsOfTwoMicroBatches) {
  LlamaSession llama = session();
  const TokenBatch second = make_batch(61, 2, 11, 2);
  llama.model().forward_backward(batch_.view(), {}, false);
  const auto a = llama.gradient_values();
  llama.model().forward_backward(second.view(), {}, false);
  const auto b = llama.gradient_values();
  llama.model().forward_backward(batch_.view(), {}, false);
  llama.model().forward_backward(second.view(), {}, true);
  const auto sum = llama.gradient_values();
  for (size_t t = 0; t < sum.size(); ++t) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < sum[t].size(); ++i) {
      const double expected = double{a[t][i]} + double{b[t][i]};
      difference += std::pow(sum[t][i] - expected, 2);
      norm += expected * expected;
    }
    EXPECT_LT(std::sqrt(difference / norm), 1e-6) << llama.parameters()[t].name;
  }
}

TEST_P(LlamaTest, EvaluationGivesTheLossOfTheTrainingForward) {
  for (const DType dtype : {DType::kFP32, DType::kBF16}) {
    LlamaSession llama = session(dtype, DType::kFP32);
    const LossResult trained = llama.model().forward_backward(batch_.view(), {}, false);
    const auto gradients = llama.gradient_values();
    const LossResult evaluated = llama.model().evaluate(batch_.view());
    EXPECT_EQ(evaluated.loss_sum, trained.loss_sum);
    EXPECT_EQ(evaluated.token_count, trained.token_count);
    expect_same(llama, gradients);
  }
}

TEST_P(LlamaTest, InferencePlanGivesTheSameLossWithLessMemory) {
  const LlamaOptions o = options(GetParam(), DType::kBF16);
  LlamaSession training(o, {2, 11, ActivationUse::kTraining}, DType::kFP32);
  LlamaSession inference(o, {2, 11, ActivationUse::kInference}, DType::kFP32);
  EXPECT_EQ(inference.model().evaluate(batch_.view()).loss_sum,
            training.model().evaluate(batch_.view()).loss_sum);
  EXPECT_LT(inference.ledger().tagged()[MemoryClass::kActivations],
            training.ledger().tagged()[MemoryClass::kActivations]);
}

TEST_P(LlamaTest, LaterTokensDoNotChangeEarlierPredictions) {
  LlamaSession llama = session();
  const size_t kept = 6;
  for (size_t i = 0; i < batch_.targets.size(); ++i) {
    if (i % 11 >= kept) batch_.targets[i] = -1;
  }
  const double before = llama.model().evaluate(batch_.view()).loss_sum;
  for (size_t i = 0; i < batch_.inputs.size(); ++i) {
    if (i % 11 >= kept) batch_.inputs[i] = (batch_.inputs[i] + 17) % 61;
  }
  EXPECT_EQ(llama.model().evaluate(batch_.view()).loss_sum, before);
  batch_.inputs[kept - 1] = (batch_.inputs[kept - 1] + 17) % 61;
  EXPECT_NE(llama.model().evaluate(batch_.view()).loss_sum, before);
}

TEST_P(LlamaTest, SequencesOfOneMicroBatchDoNotSeeEachOther) {
  LlamaSession llama = session();
  double separate = 0;
  for (int64_t s = 0; s < 2; ++s) {
    const std::span<const int32_t> inputs(batch_.inputs.data() + 11 * s, 11);
    const std::span<const int32_t> targets(batch_.targets.data() + 11 * s, 11);
    separate += llama.model().evaluate({inputs, targets, 1, 11}).loss_sum;
  }
  const double together = llama.model().evaluate(batch_.view()).loss_sum;
  EXPECT_NEAR(together, separate, 1e-6 * together);
}

TEST_P(LlamaTest, NextTokenLogitsAgreeWithTheLossAtThatPosition) {
  LlamaSession llama = session();
  for (const size_t length : {size_t{1}, size_t{5}, size_t{11}}) {
    const std::span<const int32_t> prefix(batch_.inputs.data(), length);
    const std::vector<float> logits = llama.model().next_token_logits(prefix);
    ASSERT_EQ(logits.size(), 61u);
    double sum = 0;
    for (const float logit : logits) sum += std::exp(double{logit});
    const int32_t target = batch_.targets[length - 1];
    const double expected = std::log(sum) - double{logits[static_cast<size_t>(target)]};

    std::vector<int32_t> targets(length, -1);
    targets.back() = target;
    const LossResult loss =
        llama.model().evaluate({prefix, targets, 1, static_cast<int64_t>(length)});
    EXPECT_EQ(loss.token_count, 1);
    EXPECT_NEAR(loss.loss_sum, expected, 1e-5 * expected);
  }
}

TEST_P(LlamaTest, IgnoredTargetsAddNeitherLossNorGradient) {
  LlamaSession llama = session();
  const double all = llama.model().evaluate(batch_.view()).loss_sum;
  TokenBatch first = batch_, second = batch_;
  for (size_t i = 0; i < batch_.targets.size(); ++i) (i % 3 ? first : second).targets[i] = -1;
  const LossResult a = llama.model().evaluate(first.view());
  const LossResult b = llama.model().evaluate(second.view());
  EXPECT_EQ(a.token_count, 8);
  EXPECT_EQ(a.token_count + b.token_count, 22);
  EXPECT_NEAR(a.loss_sum + b.loss_sum, all, 1e-9 * all);

  first.targets.assign(first.targets.size(), -1);
  for (const Tensor& gradient : llama.gradients()) poison(gradient);
  const LossResult none = llama.model().forward_backward(first.view(), {}, false);
  EXPECT_EQ(none.loss_sum, 0);
  EXPECT_EQ(none.token_count, 0);
  for (const auto& gradient : llama.gradient_values()) {
    EXPECT_THAT(gradient, ::testing::Each(0.0f));
  }
}

TEST_P(LlamaTest, ASmallerMicroBatchThanPlannedGivesWhatAnExactPlanGives) {
  LlamaSession large = session();
  LlamaSession exact(options(GetParam(), DType::kFP32), {1, 7}, DType::kFP32);
  const TokenBatch small = make_batch(61, 1, 7, 3);
  EXPECT_EQ(large.model().forward_backward(small.view(), {}, false).loss_sum,
            exact.model().forward_backward(small.view(), {}, false).loss_sum);
  expect_same(large, exact.gradient_values());
}

INSTANTIATE_TEST_SUITE_P(Embeddings, LlamaTest, ::testing::Bool(), [](const auto& test) {
  return std::string(test.param ? "Tied" : "Untied");
});

/// Runs `call` and gives the error's code and text.
template <class Call>
std::pair<ExitCode, std::string> refusal(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {ExitCode::kDone, "no error"};
}

TEST(LlamaRefuses, TokensOutsideTheVocabularyWithTheirPosition) {
  LlamaSession llama(tiny_options(true, DType::kFP32), {1, 8}, DType::kFP32);
  for (const int32_t bad : {61, -1, INT32_MIN, INT32_MAX}) {
    TokenBatch batch = make_batch(61, 1, 8, 1);
    batch.inputs[5] = bad;
    const auto [code, text] = refusal([&] { llama.model().evaluate(batch.view()); });
    EXPECT_EQ(code, ExitCode::kBadData);
    EXPECT_THAT(text, HasSubstr("input token " + std::to_string(bad)));
    EXPECT_THAT(text, HasSubstr("position 5"));
  }
  for (const int32_t bad : {61, -2}) {
    TokenBatch batch = make_batch(61, 1, 8, 1);
    batch.targets[2] = bad;
    const auto [code, text] =
        refusal([&] { llama.model().forward_backward(batch.view(), {}, false); });
    EXPECT_EQ(code, ExitCode::kBadData);
    EXPECT_THAT(text, HasSubstr("target token " + std::to_string(bad)));
  }
  const std::vector<int32_t> prompt{1, 99};
  EXPECT_EQ(refusal([&] { llama.model().next_token_logits(prompt); }).first, ExitCode::kBadData);
}

TEST(LlamaRefuses, MicroBatchesThatDoNotFitThePlan) {
  LlamaSession llama(tiny_options(true, DType::kFP32), {1, 8}, DType::kFP32);
  for (const auto& [sequences, length] : std::vector<std::pair<int64_t, int64_t>>{{2, 4}, {1, 9}}) {
    const TokenBatch batch = make_batch(61, sequences, length, 1);
    EXPECT_EQ(refusal([&] { llama.model().evaluate(batch.view()); }).first, ExitCode::kInternal);
  }
  TokenBatch short_targets = make_batch(61, 1, 8, 1);
  short_targets.targets.pop_back();
  EXPECT_EQ(refusal([&] { llama.model().evaluate(short_targets.view()); }).first,
            ExitCode::kInternal);
  const std::vector<int32_t> long_prompt(9, 1);
  EXPECT_EQ(refusal([&] { llama.model().next_token_logits(long_prompt); }).first,
            ExitCode::kInternal);
  EXPECT_EQ(refusal([&] { llama.model().next_token_logits({}); }).first, ExitCode::kInternal);
}

TEST(LlamaRefuses, AccumulatingIntoBf16Gradients) {
  LlamaSession llama(tiny_options(true, DType::kBF16), {1, 8}, DType::kBF16);
  const TokenBatch batch = make_batch(61, 1, 8, 1);
  EXPECT_THAT(refusal([&] { llama.model().forward_backward(batch.view(), {}, true); }).second,
              HasSubstr("only fp32 gradients accumulate"));
}

TEST(LlamaRefuses, ABackwardWithoutGradientsOrWithAnInferencePlan) {
  const TokenBatch batch = make_batch(61, 1, 8, 1);
  LlamaSession inference(tiny_options(true, DType::kFP32), {1, 8, ActivationUse::kInference},
                         DType::kFP32);
  EXPECT_EQ(refusal([&] { inference.model().forward_backward(batch.view(), {}, false); }).first,
            ExitCode::kInternal);
  LlamaSession training(tiny_options(true, DType::kFP32), {1, 8}, DType::kFP32);
  training.model().bind(training.weights(), {});
  EXPECT_EQ(refusal([&] { training.model().forward_backward(batch.view(), {}, false); }).first,
            ExitCode::kInternal);
  EXPECT_GT(training.model().evaluate(batch.view()).loss_sum, 0);
}

TEST(LlamaRefuses, BoundTensorsThatDoNotMatchTheParameters) {
  LlamaSession llama(tiny_options(false, DType::kFP32), {1, 8}, DType::kFP32);
  const auto binding = [&](const std::vector<Tensor>& weights,
                           const std::vector<Tensor>& gradients) {
    return refusal([&] { llama.model().bind(weights, gradients); });
  };
  std::vector<Tensor> fewer = llama.weights();
  fewer.pop_back();
  EXPECT_THAT(binding(fewer, {}).second, HasSubstr("14 weights were bound to 15 parameters"));

  std::vector<Tensor> transposed = llama.weights();
  std::swap(transposed[2].shape[0], transposed[2].shape[1]);
  EXPECT_THAT(binding(transposed, {}).second, HasSubstr("layers.0.self_attn.qkv_proj.weight"));

  std::vector<Tensor> mixed = llama.gradients();
  mixed[3].dtype = DType::kBF16;
  EXPECT_THAT(binding(llama.weights(), mixed).second, HasSubstr("gradient bound to"));

  std::vector<Tensor> integers = llama.gradients();
  for (Tensor& gradient : integers) gradient.dtype = DType::kINT32;
  EXPECT_THAT(binding(llama.weights(), integers).second, HasSubstr("must be bf16 or fp32"));
}

TEST(LlamaRefuses, ToRunUnboundOrToBePlannedForNothing) {
  const auto backend = make_cpu_backend({.threads = 1});
  MemoryLedger ledger(*backend);
  const LlamaOptions options = tiny_options(true, DType::kFP32);
  Llama unbound(ledger, options, {1, 8});
  const std::vector<int32_t> prompt{1};
  EXPECT_EQ(refusal([&] { unbound.next_token_logits(prompt); }).first, ExitCode::kInternal);
  EXPECT_EQ(refusal([&] { Llama(ledger, options, {0, 8}); }).first, ExitCode::kUsage);
  EXPECT_EQ(refusal([&] { Llama(ledger, options, {1, 0}); }).first, ExitCode::kUsage);
}

TEST(LlamaRefuses, SequencesLongerThanItsPositions) {
  const auto backend = make_cpu_backend({.threads = 1});
  MemoryLedger ledger(*backend);
  LlamaOptions options = tiny_options(true, DType::kFP32);
  options.max_position_embeddings = 8;
  EXPECT_EQ(Llama(ledger, options, {2, 8}).maximum_sequence_length(), 8);
  const auto [code, text] = refusal([&] { Llama(ledger, options, {1, 9}); });
  EXPECT_EQ(code, ExitCode::kUsage);
  EXPECT_THAT(text, HasSubstr("a sequence of 9 tokens is longer than the model's 8 positions"));
}

}  // namespace
}  // namespace flashshard
