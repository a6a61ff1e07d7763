// Loss, logits and gradients against transformers (golden/make_llama.py): a plain Llama with tied
// embeddings; a Llama 3 with grouped key/value heads, scaled rotary frequencies and a head of its
// own; a Qwen2.5 with biases of q, k and v and tied embeddings.
#include <gtest/gtest.h>

#include <string>

#include "golden_model.h"

namespace flashshard {
namespace {

class LlamaGolden : public ::testing::TestWithParam<std::string> {
 protected:
  LlamaSession session(DType dtype, DType gradient_dtype) const {
    return LlamaSession(golden_options(golden_.facts["options"], dtype),
                        {batch_.sequences, batch_.sequence_length}, gradient_dtype);
  }
  /// Logits of the first sequence after each of its prefixes.
  std::vector<float> logits(DType dtype) const {
    LlamaSession llama = session(dtype, dtype);
    std::vector<float> all;
    for (size_t length = 1; length <= static_cast<size_t>(batch_.sequence_length); ++length) {
      const auto next = llama.model().next_token_logits({batch_.inputs.data(), length});
      all.insert(all.end(), next.begin(), next.end());
    }
    return all;
  }
  Golden golden_ = read_golden(GetParam());
  TokenBatch batch_ = batch_of(golden_);
};

TEST_P(LlamaGolden, Fp32LossEqualsTransformers) {
  LlamaSession llama = session(DType::kFP32, DType::kFP32);
  const LossResult loss = llama.model().evaluate(batch_.view());
  EXPECT_EQ(loss.token_count, 2 * 13 - 3);
  EXPECT_NEAR(loss.loss_sum, golden_.facts["loss_sum"], 1e-5 * loss.loss_sum);
}

TEST_P(LlamaGolden, Fp32GradientsEqualTransformers) {
  LlamaSession llama = session(DType::kFP32, DType::kFP32);
  ASSERT_EQ(llama.gradients().size(), golden_.gradients.size());
  llama.model().forward_backward(batch_.view(), {}, false);
  for (size_t t = 0; t < golden_.gradients.size(); ++t) {
    EXPECT_LT(relative_error(read_values(llama.gradients()[t]), golden_.gradients[t]), 1e-4)
        << llama.parameters()[t].name;
  }
}

TEST_P(LlamaGolden, Fp32LogitsEqualTransformersAtEveryPosition) {
  EXPECT_LT(relative_error(logits(DType::kFP32), golden_.logits), 1e-5);
}

// What bf16 storage costs is measured by PyTorch's own bf16 run of the same model: the error of
// either, against float64, is one sample of the rounding.
TEST_P(LlamaGolden, Bf16LogitsAreAsCloseToTheExactOnesAsPyTorchInBf16) {
  const double torch_error = golden_.facts["error_of_torch_bf16_logits"];
  EXPECT_LT(relative_error(logits(DType::kBF16), golden_.logits), 1.5 * torch_error);
}

TEST_P(LlamaGolden, Bf16IsAsCloseToTheExactGradientAsPyTorchInBf16) {
  for (const DType gradient_dtype : {DType::kBF16, DType::kFP32}) {
    LlamaSession llama = session(DType::kBF16, gradient_dtype);
    const LossResult loss = llama.model().forward_backward(batch_.view(), {}, false);
    EXPECT_NEAR(loss.loss_sum, golden_.facts["loss_sum"], 5e-3 * loss.loss_sum);
    for (size_t t = 0; t < golden_.gradients.size(); ++t) {
      const double torch_error = golden_.facts["error_of_torch_bf16_gradients"][t];
      EXPECT_LT(relative_error(read_values(llama.gradients()[t]), golden_.gradients[t]),
                1.5 * torch_error)
          << llama.parameters()[t].name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, LlamaGolden, ::testing::Values("llama_tied", "llama3", "qwen2"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace flashshard
