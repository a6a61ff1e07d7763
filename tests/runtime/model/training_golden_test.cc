// Fifty optimizer steps beside PyTorch's fp32 AdamW on the same transformers model, from the same
// weights on the same tokens (golden/make_training.py): in fp32 throughout, and with the defaults
// (bf16 weights and forward, 24-bit master weights, companded state).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>

#include "comm/threads.h"
#include "llama_session.h"
#include "runtime/config/run_config.h"
#include "runtime/engine.h"

namespace flashshard {
namespace {

nlohmann::json read_golden() {
  std::ifstream file(std::string(FLASHSHARD_TEST_DATA) + "/runtime/model/golden/training.json");
  return nlohmann::json::parse(file);
}

std::string model_section(const nlohmann::json& options) {
  std::string text;
  for (const auto& [name, value] : options.items()) {
    if (!value.is_object()) text += fmt::format("{}: {} ", name, value.dump());
  }
  if (options.contains("rope_scaling")) {
    const auto& scaling = options["rope_scaling"];
    text += "rope_scaling: LLAMA3 ";
    for (const auto& [name, value] : scaling.items()) {
      text += fmt::format("rope_{}: {} ", name == "factor" ? "scaling_factor" : name, value.dump());
    }
  }
  return text;
}

std::string optimizer_section(const nlohmann::json& optimizer) {
  std::string text;
  for (const auto& [name, value] : optimizer.items()) {
    text += fmt::format("{}: {} ", name, value.dump());
  }
  return text;
}

/// Tokens of a step: three of four follow from the token before them, the others are drawn.
TokenBatch batch_of(const nlohmann::json& golden, int step, int vocabulary) {
  TokenBatch batch;
  batch.sequences = golden["sequences"];
  batch.sequence_length = golden["sequence_length"];
  const auto row = static_cast<int>(batch.sequence_length) + 1;
  for (int b = 0; b < static_cast<int>(batch.sequences); ++b) {
    int token = 0;
    for (int i = 0; i < row; ++i) {
      const auto count =
          static_cast<uint32_t>((step * static_cast<int>(batch.sequences) + b) * row);
      const uint32_t h = golden_hash(count + static_cast<uint32_t>(i));
      const bool drawn = i == 0 || h % 4 == 0;
      token = drawn ? static_cast<int>((h >> 2) % static_cast<uint32_t>(vocabulary))
                    : (5 * token + 7) % vocabulary;
      if (i + 1 < row) batch.inputs.push_back(token);
      if (i > 0) batch.targets.push_back(token);
    }
  }
  return batch;
}

/// Matrices as in the other golden files divided by 8, norms 1, biases 0.
void draw(Engine& engine) {
  const auto& parameters = engine.model().parameters();
  engine.optimizer().initialize([&](int tensor, RowRange rows, std::span<float> out) {
    const ParameterSpec& parameter = parameters[static_cast<size_t>(tensor)];
    const auto first = static_cast<size_t>(rows.first * parameter.cols);
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = parameter.role == ParameterRole::kVector
                   ? (is_bias(parameter) ? 0.0f : 1.0f)
                   : golden_weight(static_cast<size_t>(tensor), first + i, parameter) / 8;
    }
  });
}

class TrainingGolden : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  proto::RunConfig config() const {
    const std::string text = fmt::format(
        "run {{ dir: 'unused' threads: 1 }} data {{ path: 'unused' }} model {{ {} }} optimizer {{ "
        "{} }} train {{ steps: {} sequence_length: {} micro_batch: {} global_batch: {} }}",
        model_section(case_["options"]), optimizer_section(golden_["optimizer"]),
        golden_["steps"].dump(), golden_["sequence_length"].dump(), golden_["sequences"].dump(),
        golden_["sequences"].dump());
    std::vector<std::string> overrides;
    if (std::get<1>(GetParam()) == "fp32") {
      overrides = {"model.dtype=FP32", "optimizer.state=FP32"};
    }
    return parse_run_config(text, "training_golden_test", overrides);
  }

  nlohmann::json golden_ = read_golden();
  nlohmann::json case_ = golden_["cases"][std::get<0>(GetParam())];
};

TEST_P(TrainingGolden, FollowsPyTorchsFp32AdamW) {
  // The golden losses have six decimals. Half a per cent is what bf16 is allowed.
  const bool fp32 = std::get<1>(GetParam()) == "fp32";
  const double tolerance = fp32 ? 1e-5 : 5e-3;
  const auto communicator = std::move(make_thread_communicators(1).front());
  const proto::RunConfig run = config();
  Engine engine(*communicator, run, 0);
  draw(engine);
  const double learning_rate = run.optimizer().learning_rate();
  const int vocabulary = case_["options"]["vocab_size"];
  for (int step = 0; step < golden_["steps"]; ++step) {
    const TokenBatch batch = batch_of(golden_, step, vocabulary);
    engine.optimizer().begin_round({});
    engine.optimizer().begin_pass(true);
    const LayerHooks hooks{{}, [&](int layer) { engine.optimizer().layer_ready(layer); }};
    const LossResult result = engine.model().forward_backward(batch.view(), hooks, false);
    const StepOutcome outcome = engine.optimizer().step(learning_rate, result.token_count);
    ASSERT_TRUE(outcome.applied);
    const double loss = result.loss_sum / static_cast<double>(result.token_count);
    const double expected = case_["losses"][static_cast<size_t>(step)];
    EXPECT_NEAR(loss, expected, tolerance * expected) << "step " << step;
    const double norm = case_["gradient_norms"][static_cast<size_t>(step)];
    EXPECT_NEAR(outcome.gradient_norm, norm, (fp32 ? 1e-5 : 0.03) * norm) << "step " << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TrainingGolden,
                         ::testing::Combine(::testing::Values("llama3", "qwen2"),
                                            ::testing::Values("fp32", "defaults")),
                         [](const auto& test) {
                           return std::get<0>(test.param) + "_" + std::get<1>(test.param);
                         });

}  // namespace
}  // namespace flashshard
