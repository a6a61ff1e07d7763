// config.json: what is written is read back, what transformers writes is read, and what this
// project's decoder does not compute is refused by field.
#include "runtime/exchange/hugging_face_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::exchange {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

nlohmann::json golden(const std::string& name) {
  return nlohmann::json::parse(checkpoint::test::read_text(
      FLASHSHARD_TEST_DATA "/runtime/exchange/golden/" + name + "/config.json"));
}

LlamaOptions read_model(const nlohmann::json& json) {
  return read_hugging_face_config(json.dump(), "config.json").model;
}

void expect_same(const LlamaOptions& a, const LlamaOptions& b) {
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.hidden_size, b.hidden_size);
  EXPECT_EQ(a.layers, b.layers);
  EXPECT_EQ(a.heads, b.heads);
  EXPECT_EQ(a.kv_heads, b.kv_heads);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.feed_forward_size, b.feed_forward_size);
  EXPECT_EQ(a.rope_theta, b.rope_theta);
  EXPECT_EQ(a.rope_scaling.kind, b.rope_scaling.kind);
  EXPECT_EQ(a.rope_scaling.factor, b.rope_scaling.factor);
  EXPECT_EQ(a.rope_scaling.low_frequency_factor, b.rope_scaling.low_frequency_factor);
  EXPECT_EQ(a.rope_scaling.high_frequency_factor, b.rope_scaling.high_frequency_factor);
  EXPECT_EQ(a.rope_scaling.original_positions, b.rope_scaling.original_positions);
  EXPECT_EQ(a.max_position_embeddings, b.max_position_embeddings);
  EXPECT_EQ(a.norm_epsilon, b.norm_epsilon);
  EXPECT_EQ(a.qkv_bias, b.qkv_bias);
  EXPECT_EQ(a.tied_embeddings, b.tied_embeddings);
  EXPECT_EQ(a.init_std, b.init_std);
}

TEST(HuggingFaceConfig, OfTransformersIsReadWithNothingLeftAside) {
  const HuggingFaceConfig llama = read_hugging_face_config(golden("llama3").dump(), "config.json");
  EXPECT_THAT(llama.unknown_fields, IsEmpty());
  EXPECT_EQ(llama.model.vocab_size, 61);
  EXPECT_EQ(llama.model.feed_forward_size, 48);
  EXPECT_EQ(llama.model.kv_heads, 2);
  EXPECT_EQ(llama.model.rope_theta, 500000);
  EXPECT_EQ(llama.model.rope_scaling.kind, RopeScaling::Kind::kLlama3);
  EXPECT_EQ(llama.model.rope_scaling.original_positions, 256);
  EXPECT_FALSE(llama.model.tied_embeddings);
  EXPECT_FALSE(llama.model.qkv_bias);
  const HuggingFaceConfig qwen = read_hugging_face_config(golden("qwen2").dump(), "config.json");
  EXPECT_THAT(qwen.unknown_fields, IsEmpty());
  EXPECT_EQ(qwen.model.norm_epsilon, 1e-6);
  EXPECT_EQ(qwen.model.rope_scaling.kind, RopeScaling::Kind::kNone);
  EXPECT_TRUE(qwen.model.tied_embeddings);
  EXPECT_TRUE(qwen.model.qkv_bias);
}

TEST(HuggingFaceConfig, BeforeTransformers5StandsInOtherFieldsAndMeansTheSame) {
  nlohmann::json json = golden("llama3");
  nlohmann::json scaling = json["rope_parameters"];
  json["rope_theta"] = scaling["rope_theta"];
  scaling.erase("rope_theta");
  scaling["type"] = "llama3";
  scaling.erase("rope_type");
  json["rope_scaling"] = scaling;
  json.erase("rope_parameters");
  expect_same(read_model(json), read_model(golden("llama3")));
}

TEST(HuggingFaceConfig, WithoutOptionalFieldsHasTransformersDefaults) {
  const LlamaOptions model = read_model({{"model_type", "llama"},
                                         {"vocab_size", 100},
                                         {"hidden_size", 64},
                                         {"num_hidden_layers", 2},
                                         {"num_attention_heads", 4},
                                         {"intermediate_size", 96}});
  EXPECT_EQ(model.kv_heads, 4);
  EXPECT_EQ(model.head_dim, 16);
  EXPECT_EQ(model.max_position_embeddings, 2048);
  EXPECT_EQ(model.norm_epsilon, 1e-6);
  EXPECT_EQ(model.rope_theta, 10000);
  EXPECT_FALSE(model.tied_embeddings);
}

TEST(HuggingFaceConfig, WithRopeParametersOfNoTypeHasUnscaledFrequencies) {
  nlohmann::json json = golden("llama3");
  json["rope_parameters"] = {{"rope_theta", 20000}, {"partial_rotary_factor", 1}};
  const HuggingFaceConfig config = read_hugging_face_config(json.dump(), "config.json");
  EXPECT_EQ(config.model.rope_theta, 20000);
  json["rope_theta"] = 20000;
  EXPECT_EQ(read_model(json).rope_theta, 20000);
  EXPECT_EQ(config.model.rope_scaling.kind, RopeScaling::Kind::kNone);
  EXPECT_THAT(config.unknown_fields, IsEmpty());
}

TEST(HuggingFaceConfig, WrittenIsReadBack) {
  for (const char* name : {"llama3", "qwen2"}) {
    const LlamaOptions model = read_model(golden(name));
    const auto files =
        write_hugging_face_config({.model = model, .beginning_of_text = 6, .end_of_document = 7});
    const HuggingFaceConfig read = read_hugging_face_config(files.config, "config.json");
    expect_same(read.model, model);
    EXPECT_THAT(read.unknown_fields, IsEmpty());
    const auto config = nlohmann::json::parse(files.config);
    EXPECT_EQ(config["architectures"], golden(name)["architectures"]);
    EXPECT_EQ(config["torch_dtype"], "bfloat16");
    EXPECT_EQ(config["bos_token_id"], 6);
    EXPECT_EQ(config["eos_token_id"], 7);
    EXPECT_EQ(nlohmann::json::parse(files.generation_config)["bos_token_id"], 6);
    EXPECT_EQ(nlohmann::json::parse(files.generation_config)["eos_token_id"], 7);
  }
}

TEST(HuggingFaceConfig, OfAModelWithoutALimitOfPositionsHasThoseItWasTrainedOn) {
  LlamaOptions model = read_model(golden("llama3"));
  model.max_position_embeddings = 0;
  const auto files =
      write_hugging_face_config({.model = model, .weights = DType::kFP32, .sequence_length = 512});
  const auto config = nlohmann::json::parse(files.config);
  EXPECT_EQ(config["max_position_embeddings"], 512);
  EXPECT_EQ(config["torch_dtype"], "float32");
  EXPECT_TRUE(config["bos_token_id"].is_null());
  EXPECT_TRUE(config["eos_token_id"].is_null());
}

TEST(HuggingFaceConfig, FieldsThatAreNotKnownAreNamed) {
  nlohmann::json json = golden("llama3");
  json["vendor_note"] = "x";
  json["unset"] = nullptr;
  json["rope_parameters"]["odd"] = 1;
  EXPECT_THAT(read_hugging_face_config(json.dump(), "config.json").unknown_fields,
              ElementsAre("rope_parameters.odd", "vendor_note"));
}

struct Refused {
  std::string name;
  std::string patch;  // JSON merge patch on the golden llama3
  std::string says;
};
class RefusedConfig : public ::testing::TestWithParam<Refused> {};

TEST_P(RefusedConfig, NamesItsField) {
  nlohmann::json json = golden("llama3");
  json.merge_patch(nlohmann::json::parse(GetParam().patch));
  try {
    read_hugging_face_config(json.dump(), "there/config.json");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
    EXPECT_THAT(error.what(), AllOf(HasSubstr(GetParam().says), HasSubstr("there/config.json")));
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Fields, RefusedConfig,
    ::testing::Values(
        Refused{"Architecture", R"({"model_type": "mistral"})", "model_type is \"mistral\""},
        Refused{"NoType", R"({"model_type": null})", "model_type is missing"},
        Refused{"OtherHead", R"({"architectures": ["LlamaForTokenClassification"]})",
                "architectures is [\"LlamaForTokenClassification\"], wants [\"LlamaForCausalLM\"]"},
        Refused{"Activation", R"({"hidden_act": "gelu"})",
                "hidden_act is \"gelu\", wants \"silu\""},
        Refused{"AttentionBias", R"({"attention_bias": true})", "attention_bias is true"},
        Refused{"FeedForwardBias", R"({"mlp_bias": true})", "mlp_bias is true"},
        Refused{"SlidingWindow", R"({"use_sliding_window": true})", "use_sliding_window is true"},
        Refused{"LayerTypes", R"({"layer_types": ["full_attention", "sliding_attention"]})",
                "layer_types is ["},
        Refused{"Dropout", R"({"attention_dropout": 0.1})", "attention_dropout is 0.1"},
        Refused{"Quantised", R"({"quantization_config": {"bits": 4}})",
                "quantization_config is {\"bits\":4}, wants null: quantised weights are not read"},
        Refused{"RopeType", R"({"rope_parameters": {"rope_type": "yarn"}})",
                "rope_parameters.rope_type is \"yarn\""},
        Refused{"RopeFactorMissing", R"({"rope_parameters": {"factor": null}})",
                "rope_parameters.factor is missing"},
        Refused{"RopeScalingWithoutType",
                R"({"rope_parameters": null, "rope_scaling": {"factor": 8.0}})",
                "rope_scaling.rope_type is missing"},
        Refused{"RopeScalingType", R"({"rope_parameters": null, "rope_scaling": {"type": "yarn"}})",
                "rope_scaling.type is \"yarn\""},
        Refused{"RopeOfPartOfAHead", R"({"rope_parameters": {"partial_rotary_factor": 0.5}})",
                "rope_parameters.partial_rotary_factor is 0.5, wants 1.0"},
        Refused{"RopeTwice", R"({"rope_scaling": {"rope_type": "default"}})",
                "rope_scaling is {\"rope_type\":\"default\"}, wants null beside rope_parameters"},
        Refused{"RopeOfTwoBases", R"({"rope_theta": 10000.0})",
                "rope_parameters.rope_theta is 500000.0, wants 10000.0 as rope_theta has it"},
        Refused{"RopeNoObject", R"({"rope_parameters": 3})", "rope_parameters is 3"},
        Refused{"SizeMissing", R"({"hidden_size": null})", "hidden_size is missing"},
        Refused{"SizeNegative", R"({"hidden_size": -4})", "hidden_size is -4"},
        Refused{"SizeFraction", R"({"hidden_size": 32.5})", "hidden_size is 32.5"},
        Refused{"SizeHuge", R"({"vocab_size": 18446744073709551615})", "vocab_size is 1844"},
        Refused{"SizeText", R"({"vocab_size": "many"})", "vocab_size is \"many\""},
        Refused{"NoHeads", R"({"num_attention_heads": 0})", "num_attention_heads is 0"},
        Refused{"EpsilonText", R"({"rms_norm_eps": "small"})", "rms_norm_eps is \"small\""},
        Refused{"TiedText", R"({"tie_word_embeddings": "yes"})", "tie_word_embeddings is \"yes\""}),
    [](const auto& test_case) { return test_case.param.name; });

TEST(HuggingFaceConfig, ThatIsNoObjectIsRefused) {
  const std::string deep = R"({"hidden_act":)" + std::string(1'000'000, '[');
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("{"), std::string("\xff"), std::string("3"),
        deep, deep + std::string(1'000'000, ']') + "}"}) {
    EXPECT_THROW(read_hugging_face_config(text, "config.json"), Error) << text.substr(0, 20);
  }
}

}  // namespace
}  // namespace flashshard::exchange
