// What follows from the shape of a Llama: parameters, counts, initial values, operations per token,
// refusals.
#include "runtime/model/llama_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "kernels/error.h"

namespace flashshard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

LlamaOptions options(bool tied) {
  LlamaOptions o;
  o.vocab_size = 61;
  o.hidden_size = 32;
  o.layers = 2;
  o.heads = 4;
  o.kv_heads = 2;
  o.head_dim = 10;
  o.feed_forward_size = 48;
  o.tied_embeddings = tied;
  return o;
}

const ParameterSpec& named(const std::vector<ParameterSpec>& list, std::string_view name) {
  for (const ParameterSpec& p : list) {
    if (p.name == name) return p;
  }
  ADD_FAILURE() << name << " is missing";
  return list.front();
}

TEST(LlamaParameters, FollowHuggingFaceNamesInForwardOrder) {
  std::vector<std::string> names;
  for (const ParameterSpec& p : llama_parameters(options(false))) names.push_back(p.name);
  EXPECT_THAT(names, ElementsAre("model.embed_tokens.weight",                       //
                                 "model.layers.0.input_layernorm.weight",           //
                                 "model.layers.0.self_attn.qkv_proj.weight",        //
                                 "model.layers.0.self_attn.o_proj.weight",          //
                                 "model.layers.0.post_attention_layernorm.weight",  //
                                 "model.layers.0.mlp.gate_up_proj.weight",          //
                                 "model.layers.0.mlp.down_proj.weight",             //
                                 "model.layers.1.input_layernorm.weight",           //
                                 "model.layers.1.self_attn.qkv_proj.weight",        //
                                 "model.layers.1.self_attn.o_proj.weight",          //
                                 "model.layers.1.post_attention_layernorm.weight",  //
                                 "model.layers.1.mlp.gate_up_proj.weight",          //
                                 "model.layers.1.mlp.down_proj.weight",             //
                                 "model.norm.weight",                               //
                                 "lm_head.weight"));
}

TEST(LlamaParameters, StoreMatricesReadTogetherAsOneWithNamedParts) {
  const auto list = llama_parameters(options(true));
  const ParameterSpec& qkv = named(list, "model.layers.1.self_attn.qkv_proj.weight");
  EXPECT_EQ(qkv.rows, (4 + 2 * 2) * 10);
  EXPECT_EQ(qkv.cols, 32);
  EXPECT_EQ(qkv.layer, 2);
  ASSERT_EQ(qkv.parts.size(), 3u);
  EXPECT_EQ(qkv.parts[1].name, "model.layers.1.self_attn.k_proj.weight");
  EXPECT_EQ(qkv.parts[1].first_row, 40);
  EXPECT_EQ(qkv.parts[1].rows, 20);
  const ParameterSpec& gate_up = named(list, "model.layers.0.mlp.gate_up_proj.weight");
  ASSERT_EQ(gate_up.parts.size(), 2u);
  EXPECT_EQ(gate_up.parts[0].name, "model.layers.0.mlp.gate_proj.weight");
}

TEST(LlamaParameters, NameTheBiasesOfQueryKeyAndValueAsPartsOfOneVector) {
  LlamaOptions o = options(true);
  o.qkv_bias = true;
  const auto list = llama_parameters(o);
  EXPECT_EQ(list.size(), llama_parameters(options(true)).size() + 2);
  const ParameterSpec& bias = named(list, "model.layers.1.self_attn.qkv_proj.bias");
  EXPECT_EQ(bias.rows, (4 + 2 * 2) * 10);
  EXPECT_EQ(bias.cols, 1);
  EXPECT_EQ(bias.role, ParameterRole::kVector);
  EXPECT_FALSE(bias.decay);
  EXPECT_EQ(bias.layer, 2);
  ASSERT_EQ(bias.parts.size(), 3u);
  EXPECT_EQ(bias.parts[0].name, "model.layers.1.self_attn.q_proj.bias");
  EXPECT_EQ(bias.parts[1].first_row, 40);
  EXPECT_EQ(bias.parts[2].name, "model.layers.1.self_attn.v_proj.bias");
}

TEST(LlamaParameters, CoverEveryRowOfATensorWithItsPartsOnce) {
  LlamaOptions o = options(false);
  o.qkv_bias = true;
  for (const ParameterSpec& p : llama_parameters(o)) {
    int64_t next = 0;
    for (const ParameterPart& part : p.parts) {
      EXPECT_EQ(part.first_row, next) << part.name;
      next += part.rows;
    }
    EXPECT_TRUE(p.parts.empty() || next == p.rows) << p.name;
  }
}

TEST(LlamaParameters, DecayMatricesAndEmbeddingsOnly) {
  for (const ParameterSpec& p : llama_parameters(options(false))) {
    EXPECT_EQ(p.decay, p.role != ParameterRole::kVector) << p.name;
    EXPECT_EQ(p.role == ParameterRole::kVector, p.name.find("norm") != std::string::npos) << p.name;
    EXPECT_EQ(p.role == ParameterRole::kVector, p.cols == 1) << p.name;
  }
}

TEST(LlamaParameters, ATiedHeadIsAFurtherNameOfTheEmbedding) {
  const auto tied = llama_parameters(options(true));
  EXPECT_THAT(tied.front().tied_names, ElementsAre("lm_head.weight"));
  EXPECT_EQ(tied.back().name, "model.norm.weight");
  const auto untied = llama_parameters(options(false));
  EXPECT_TRUE(untied.front().tied_names.empty());
  EXPECT_EQ(untied.back().role, ParameterRole::kEmbedding);
}

TEST(LlamaParameters, LayersRiseFromTheEmbeddingToTheHead) {
  const auto list = llama_parameters(options(false));
  for (size_t i = 1; i < list.size(); ++i) EXPECT_LE(list[i - 1].layer, list[i].layer);
  EXPECT_EQ(list.front().layer, 0);
  EXPECT_EQ(list.back().layer, 3);
}

TEST(LlamaParameterCount, IsTheSumOverTheList) {
  for (const bool tied : {false, true}) {
    for (const bool bias : {false, true}) {
      LlamaOptions o = options(tied);
      o.qkv_bias = bias;
      int64_t sum = 0;
      for (const ParameterSpec& p : llama_parameters(o)) sum += p.elements();
      EXPECT_EQ(llama_parameter_count(o), sum);
    }
  }
}

TEST(LlamaParameterCount, IsThePublishedOneOfLlama2And3) {
  LlamaOptions o;
  o.vocab_size = 32000;
  o.hidden_size = 4096;
  o.layers = 32;
  o.heads = o.kv_heads = 32;
  o.head_dim = 128;
  o.feed_forward_size = 11008;
  o.tied_embeddings = false;
  EXPECT_EQ(llama_parameter_count(o), 6738415616);  // Llama 2 7B
  o.vocab_size = 128256;
  o.kv_heads = 8;
  o.feed_forward_size = 14336;
  EXPECT_EQ(llama_parameter_count(o), 8030261248);  // Llama 3 8B
}

TEST(LlamaFlops, CountSixPerMultipliedParameterAndAttention) {
  const LlamaOptions tied = options(true), untied = options(false);
  const double attention = 12.0 * 2 * 40 * 128;
  EXPECT_EQ(llama_flops_per_token(tied, 128),
            6.0 * static_cast<double>(llama_parameter_count(tied)) + attention);
  // The input table of an untied model is looked up, never multiplied: both cost the same.
  EXPECT_EQ(llama_flops_per_token(untied, 128), llama_flops_per_token(tied, 128));
}

TEST(LlamaInitialization, NormsAreOneBiasesZeroAndResidualProjectionsScaledDown) {
  LlamaOptions o = options(false);
  o.qkv_bias = true;
  const auto list = llama_parameters(o);
  for (size_t t = 0; t < list.size(); ++t) {
    const Initialization init = llama_initialization(o, static_cast<int>(t));
    const std::string& name = list[t].name;
    const bool vector = list[t].role == ParameterRole::kVector;
    const bool bias = name.find("bias") != name.npos;
    const bool residual = name.find("o_proj") != name.npos || name.find("down_proj") != name.npos;
    EXPECT_EQ(init.mean, vector && !bias ? 1.0 : 0.0) << name;
    EXPECT_DOUBLE_EQ(init.standard_deviation, vector ? 0 : residual ? 0.02 / 2 : 0.02) << name;
  }
}

struct BadField {
  std::string field;
  std::function<void(LlamaOptions&)> change;
};

class LlamaValidation : public ::testing::TestWithParam<BadField> {};

TEST_P(LlamaValidation, NamesTheFieldThatIsOutOfRange) {
  LlamaOptions o = options(true);
  EXPECT_NO_THROW(validate(o));
  GetParam().change(o);
  try {
    validate(o);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(), HasSubstr("model." + GetParam().field));
    EXPECT_THAT(error.what(), HasSubstr("Hint:"));
  }
}

/// Options with llama3's scaling, one part of it changed.
template <class Change>
std::function<void(LlamaOptions&)> scaling(Change change) {
  return [change](LlamaOptions& o) {
    o.rope_scaling.kind = RopeScaling::Kind::kLlama3;
    validate(o);
    change(o.rope_scaling);
  };
}

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
INSTANTIATE_TEST_SUITE_P(
    Fields, LlamaValidation,
    ::testing::Values(
        BadField{"vocab_size", [](auto& o) { o.vocab_size = 0; }},
        BadField{"vocab_size", [](auto& o) { o.vocab_size = int64_t{1} << 40; }},
        BadField{"hidden_size", [](auto& o) { o.hidden_size = -32; }},
        BadField{"layers", [](auto& o) { o.layers = 0; }},
        BadField{"heads", [](auto& o) { o.heads = 0; }},
        BadField{"kv_heads", [](auto& o) { o.kv_heads = 0; }},
        BadField{"kv_heads", [](auto& o) { o.kv_heads = 3; }},
        BadField{"head_dim", [](auto& o) { o.head_dim = 0; }},
        BadField{"head_dim", [](auto& o) { o.head_dim = 9; }},
        BadField{"feed_forward_size", [](auto& o) { o.feed_forward_size = 0; }},
        BadField{"rope_theta", [](auto& o) { o.rope_theta = 0; }},
        BadField{"rope_theta", [](auto& o) { o.rope_theta = kNaN; }},
        BadField{"rope_scaling_factor", scaling([](auto& s) { s.factor = 0.5; })},
        BadField{"rope_scaling_factor", scaling([](auto& s) { s.factor = kNaN; })},
        BadField{"rope_low_frequency_factor", scaling([](auto& s) { s.low_frequency_factor = 4; })},
        BadField{"rope_low_frequency_factor",
                 scaling([](auto& s) { s.high_frequency_factor = kNaN; })},
        BadField{"rope_original_positions", scaling([](auto& s) { s.original_positions = 0; })},
        BadField{"max_position_embeddings", [](auto& o) { o.max_position_embeddings = -1; }},
        BadField{"norm_epsilon", [](auto& o) { o.norm_epsilon = 0; }},
        BadField{"init_std", [](auto& o) { o.init_std = -1; }},
        BadField{"dtype", [](auto& o) { o.dtype = DType::kINT8; }}),
    [](const auto& test) { return test.param.field + std::to_string(test.index); });

}  // namespace
}  // namespace flashshard
