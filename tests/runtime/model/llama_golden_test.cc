// Loss, logits and gradients against transformers (golden/make_llama.py): a plain Llama with tied
// embeddings; a Llama 3 with grouped key/value heads, scaled rotary frequencies and a head of its
// own; a Qwen2.5 with biases of q, k and v and tied embeddings.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "golden_options.h"
#include "llama_session.h"

namespace flashshard {
namespace {

struct Golden {
  nlohmann::json facts;
  std::vector<std::vector<float>> gradients;
  std::vector<float> logits;  // of the first sequence: (length, V)
};

Golden read_golden(const std::string& name) {
  const std::string stem = std::string(FLASHSHARD_TEST_DATA) + "/runtime/model/golden/" + name;
  Golden golden;
  std::ifstream(stem + ".json") >> golden.facts;
  std::ifstream values(stem + ".bin", std::ios::binary);
  const auto next = [&](size_t count) {
    std::vector<float> read(count);
    values.read(reinterpret_cast<char*>(read.data()),
                static_cast<std::streamsize>(count * sizeof(float)));
    return read;
  };
  for (const size_t count : golden.facts["gradient_elements"].get<std::vector<size_t>>()) {
    golden.gradients.push_back(next(count));
  }
  golden.logits = next(golden.facts["sequence_length"].get<size_t>() *
                       golden.facts["options"]["vocab_size"].get<size_t>());
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
