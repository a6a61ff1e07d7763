// Loss, logits and gradients against transformers' LlamaForCausalLM (golden/make_llama.py).
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "llama_session.h"

namespace flashshard {
namespace {

struct Golden {
  nlohmann::json facts;
  std::vector<std::vector<float>> gradients;
};

Golden read_golden(bool tied) {
  const std::string stem = std::string(FLASHSHARD_TEST_DATA) + "/runtime/model/golden/llama_" +
                           (tied ? "tied" : "untied");
  Golden golden;
  std::ifstream(stem + ".json") >> golden.facts;
  std::ifstream values(stem + ".bin", std::ios::binary);
  for (const size_t count : golden.facts["gradient_elements"].get<std::vector<size_t>>()) {
    golden.gradients.emplace_back(count);
    values.read(reinterpret_cast<char*>(golden.gradients.back().data()),
                static_cast<std::streamsize>(count * sizeof(float)));
  }
  EXPECT_TRUE(values.good()) << stem;
  return golden;
}

double relative_error(std::span<const float> got, std::span<const float> expected) {
  EXPECT_EQ(got.size(), expected.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += std::pow(double{got[i]} - double{expected[i]}, 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

TokenBatch batch_of(const Golden& golden) {
  return {golden.facts["inputs"].get<std::vector<int32_t>>(),
          golden.facts["targets"].get<std::vector<int32_t>>(),
          golden.facts["sequences"].get<int64_t>(), golden.facts["sequence_length"].get<int64_t>()};
}

class LlamaGolden : public ::testing::TestWithParam<bool> {
 protected:
  LlamaSession session(DType dtype, DType gradient_dtype) const {
    return LlamaSession(tiny_options(GetParam(), dtype), {batch_.sequences, batch_.sequence_length},
                        gradient_dtype);
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
  llama.model().forward_backward(batch_.view(), {}, false);
  for (size_t t = 0; t < golden_.gradients.size(); ++t) {
    EXPECT_LT(relative_error(read_values(llama.gradients()[t]), golden_.gradients[t]), 1e-4)
        << llama.parameters()[t].name;
  }
}

TEST_P(LlamaGolden, NextTokenLogitsEqualTransformers) {
  LlamaSession llama = session(DType::kFP32, DType::kFP32);
  const std::span<const int32_t> first_sequence(batch_.inputs.data(), 13);
  const std::vector<float> logits = llama.model().next_token_logits(first_sequence);
  EXPECT_LT(relative_error(logits, golden_.facts["last_logits"].get<std::vector<float>>()), 1e-5);
}

// What bf16 storage costs is measured by PyTorch's own bf16 run of the same model.
TEST_P(LlamaGolden, Bf16IsAsCloseToTheExactGradientAsPyTorchInBf16) {
  for (const DType gradient_dtype : {DType::kBF16, DType::kFP32}) {
    LlamaSession llama = session(DType::kBF16, gradient_dtype);
    const LossResult loss = llama.model().forward_backward(batch_.view(), {}, false);
    EXPECT_NEAR(loss.loss_sum, golden_.facts["loss_sum"], 5e-3 * loss.loss_sum);
    for (size_t t = 0; t < golden_.gradients.size(); ++t) {
      const double torch_error = golden_.facts["relative_error_of_torch_bf16"][t];
      EXPECT_LT(relative_error(read_values(llama.gradients()[t]), golden_.gradients[t]),
                1.5 * torch_error)
          << llama.parameters()[t].name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Embeddings, LlamaGolden, ::testing::Bool(), [](const auto& test) {
  return std::string(test.param ? "Tied" : "Untied");
});

}  // namespace
}  // namespace flashshard
