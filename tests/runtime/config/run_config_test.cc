// What a configuration becomes: precedence, presets, defaults, round trips.
#include "runtime/config/run_config.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/config/presets.h"
#include "runtime/config/schema.h"
#include "runtime/config/validation.h"
#include "runtime/engine.h"
#include "tests/runtime/config/config_text.h"

namespace flashshard {
namespace {

using test::kMinimalText;
using test::parsed;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(RunConfigTest, HasTheDocumentedDefaultsWhereNothingIsSet) {
  const proto::RunConfig config = parsed(kMinimalText);
  EXPECT_EQ(config.run().seed(), 42u);
  EXPECT_EQ(config.run().deadline_seconds(), 600);
  EXPECT_EQ(config.model().dtype(), proto::WeightType::BF16);
  EXPECT_EQ(config.optimizer().state(), proto::OptimizerState::COMPANDED);
  EXPECT_EQ(config.optimizer().master_weight_bits(), 24);
  EXPECT_EQ(config.optimizer().rounding(), proto::RoundingMode::STOCHASTIC);
  EXPECT_EQ(config.optimizer().max_consecutive_skips(), 10);
  EXPECT_EQ(config.parallelism().bucket_bytes(), int64_t{64} << 20);
  EXPECT_EQ(config.checkpoint().keep_last(), 3);
  EXPECT_TRUE(config.checkpoint().at_end());
}

TEST(RunConfigTest, SetsEveryFieldExplicitly) {
  const proto::RunConfig config = parsed(kMinimalText);
  for (const auto& field : config::setting_fields()) {
    EXPECT_TRUE(config::is_set(config, field)) << field.path;
  }
}

TEST(RunConfigTest, TakesOverridesOverTheFileAndTheLastOverrideOverEarlierOnes) {
  EXPECT_EQ(parsed(kMinimalText).train().steps(), 100);
  EXPECT_EQ(parsed(kMinimalText, {"train.steps=7"}).train().steps(), 7);
  EXPECT_EQ(parsed(kMinimalText, {"train.steps=7", "train.steps=9"}).train().steps(), 9);
}

TEST(RunConfigTest, TakesOverridesOfEveryType) {
  const proto::RunConfig config =
      parsed(kMinimalText, {"run.dir=\"a b\"", "data.path='c'", "model.preset=quickstart",
                            "run.seed=18446744073709551615", "optimizer.learning_rate=2.5e-4",
                            "optimizer.rounding=NEAREST", "model.tied_embeddings=false",
                            "run.threads=3", "checkpoint.every=50", "checkpoint.at_end=true"});
  EXPECT_EQ(config.run().dir(), "a b");
  EXPECT_EQ(config.data().path(), "c");
  EXPECT_EQ(config.model().hidden_size(), 192);
  EXPECT_EQ(config.run().seed(), 18446744073709551615u);
  EXPECT_EQ(config.optimizer().learning_rate(), 2.5e-4);
  EXPECT_EQ(config.optimizer().rounding(), proto::RoundingMode::NEAREST);
  EXPECT_FALSE(config.model().tied_embeddings());
  EXPECT_EQ(config.run().threads(), 3);
  EXPECT_EQ(config.checkpoint().every(), 50);
  EXPECT_TRUE(config.checkpoint().at_end());
}

TEST(RunConfigTest, KeepsAnEqualsSignInAnOverridesValue) {
  EXPECT_EQ(parsed(kMinimalText, {"run.dir=a=b"}).run().dir(), "a=b");
}

TEST(RunConfigTest, LetsAFieldWinOverThePreset) {
  const proto::RunConfig in_file =
      parsed("model { layers: 5 }\n" + kMinimalText.substr(0, kMinimalText.find("model")) +
                 kMinimalText.substr(kMinimalText.find("data")),
             {"model.preset=tiny"});
  EXPECT_EQ(in_file.model().layers(), 5);
  EXPECT_EQ(in_file.model().hidden_size(), 32);
  EXPECT_EQ(parsed(kMinimalText, {"model.kv_heads=2"}).model().kv_heads(), 2);
}

TEST(RunConfigTest, NeedsNoPresetWhenTheShapeIsGiven) {
  const auto config =
      parsed(kMinimalText, {"model.preset=", "model.hidden_size=48", "model.layers=1",
                            "model.heads=3", "model.feed_forward_size=96"});
  EXPECT_EQ(config.model().kv_heads(), 3);
  EXPECT_EQ(config.model().head_dim(), 16);
  EXPECT_EQ(config.model().vocab_size(), 0);
}

TEST(RunConfigTest, KeepsAnExplicitWidthOfAHead) {
  const auto config = parsed(kMinimalText, {"model.head_dim=10", "model.heads=3"});
  EXPECT_EQ(config.model().head_dim(), 10);
}

TEST(RunConfigTest, GivesTheFp32ModelA32BitMasterWeightUnlessSet) {
  const auto config = parsed(kMinimalText, {"model.dtype=FP32", "optimizer.state=FP32"});
  EXPECT_EQ(config.optimizer().master_weight_bits(), 32);
}

TEST(RunConfigTest, RoundsFlashOptimsFormatToNearestUnlessSet) {
  const auto config = parsed(kMinimalText, {"optimizer.state_format=FLASHOPTIM_V1"});
  EXPECT_EQ(config.optimizer().rounding(), proto::RoundingMode::NEAREST);
}

class MasterWeightTest : public ::testing::TestWithParam<int> {};
TEST_P(MasterWeightTest, EveryWidthGoesWithFp32StateOverBf16Weights) {
  const auto config = parsed(
      kMinimalText,
      {"optimizer.state=FP32", "optimizer.master_weight_bits=" + std::to_string(GetParam())});
  EXPECT_EQ(config.optimizer().master_weight_bits(), GetParam());
}
INSTANTIATE_TEST_SUITE_P(Bits, MasterWeightTest, ::testing::Values(0, 24, 32));

std::string test_name(std::string preset) {
  std::ranges::replace_if(
      preset, [](char c) { return c == '.' || c == '-'; }, '_');
  return "shape_" + preset;
}
std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const proto::ModelPreset& preset : config::model_presets()) names.push_back(preset.name());
  return names;
}

class PresetTest : public ::testing::TestWithParam<std::string> {
 protected:
  const proto::ModelPreset& preset_ =
      *std::ranges::find(config::model_presets(), GetParam(), &proto::ModelPreset::name);
  proto::RunConfig config_ = parsed(kMinimalText, {"model.preset=" + GetParam()});
};
TEST_P(PresetTest, IsAWholeShapeThatSatisfiesEveryRule) {
  proto::RunConfig set_by_preset;
  *set_by_preset.mutable_model() = preset_.model();
  for (const auto& field : config::setting_fields()) {
    if (!config::is_set(set_by_preset, field) || field.section->name() != "model") continue;
    EXPECT_EQ(config::value_text(config_, field), config::value_text(set_by_preset, field))
        << field.path;
  }
}
TEST_P(PresetTest, HasAsManyParametersAsItSays) {
  EXPECT_EQ(llama_parameter_count(llama_options(config_, 256)), preset_.parameters());
}
INSTANTIATE_TEST_SUITE_P(Presets, PresetTest, ::testing::ValuesIn(preset_names()),
                         [](const auto& test) { return test_name(test.param); });

struct PublishedModel {
  std::string preset;
  int64_t parameters;
};
void PrintTo(const PublishedModel& model, std::ostream* out) { *out << model.preset; }
class PublishedModelTest : public ::testing::TestWithParam<PublishedModel> {};
TEST_P(PublishedModelTest, IsAPresetWithThePublishedNumberOfParameters) {
  const auto config = parsed(kMinimalText, {"model.preset=" + GetParam().preset});
  const int64_t parameters = llama_parameter_count(llama_options(config, 0));
  // The number is published in full, or in millions.
  const bool in_full = GetParam().parameters > 100000;
  EXPECT_EQ(in_full ? parameters : std::llround(static_cast<double>(parameters) / 1e6),
            GetParam().parameters);
}
INSTANTIATE_TEST_SUITE_P(Models, PublishedModelTest,
                         ::testing::Values(PublishedModel{"llama-60m", 58},
                                           PublishedModel{"llama-130m", 134},
                                           PublishedModel{"llama-350m", 368},
                                           PublishedModel{"llama-1b", 1339},
                                           PublishedModel{"llama-7b", 6738415616},
                                           PublishedModel{"llama-3.2-1b", 1235814400},
                                           PublishedModel{"llama-3.1-8b", 8030261248},
                                           PublishedModel{"qwen2.5-0.5b", 494032768},
                                           PublishedModel{"qwen2.5-1.5b", 1543714304},
                                           PublishedModel{"qwen2.5-7b", 7615616512}),
                         [](const auto& test) { return test_name(test.param.preset); });

TEST(PresetFilesTest, EachHoldsAFamilyWithItsSource) {
  size_t presets = 0;
  for (const config::PresetFile& file : config::preset_files()) {
    proto::PresetFamily family;
    ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(std::string(file.text), &family))
        << file.name;
    EXPECT_FALSE(family.source().empty()) << file.name;
    EXPECT_GT(family.preset_size(), 0) << file.name;
    presets += static_cast<size_t>(family.preset_size());
  }
  EXPECT_EQ(presets, config::model_presets().size());
}

TEST(RunConfigTest, TakesEveryFieldOfAPresetFromItAndLetsOneBeChanged) {
  const auto llama = parsed(kMinimalText, {"model.preset=llama-3.2-1b", "model.vocab_size=0",
                                           "model.rope_scaling_factor=16"});
  EXPECT_EQ(llama.model().rope_scaling(), proto::RopeScalingKind::LLAMA3);
  EXPECT_EQ(llama.model().rope_scaling_factor(), 16);
  EXPECT_EQ(llama.model().vocab_size(), 0);
  EXPECT_TRUE(llama.model().tied_embeddings());
  const LlamaOptions options = llama_options(llama, 256);
  EXPECT_EQ(options.rope_scaling.kind, RopeScaling::Kind::kLlama3);
  EXPECT_EQ(options.rope_scaling.factor, 16);
  EXPECT_EQ(options.rope_scaling.original_positions, 8192);
  EXPECT_EQ(options.max_position_embeddings, 131072);
  EXPECT_FALSE(options.qkv_bias);
  EXPECT_TRUE(llama_options(parsed(kMinimalText, {"model.preset=qwen2.5-0.5b"}), 0).qkv_bias);
}

TEST(RunConfigTest, ComesBackUnchangedFromItsText) {
  const auto config = parsed(
      kMinimalText, {"run.dir=Läufe/\"1\"\\2", "optimizer.learning_rate=0.30000000000000004",
                     "optimizer.epsilon=1.0000000000000002e-12", "run.seed=18446744073709551615",
                     "schedule.kind=WSD", "optimizer.state=FP32", "model.dtype=FP32",
                     "parallelism.transport=MPI"});
  const std::string text = to_text(config);
  EXPECT_THAT(text, HasSubstr("Läufe"));
  const auto again = parsed(text);
  EXPECT_EQ(again.SerializeAsString(), config.SerializeAsString());
  EXPECT_EQ(to_text(again), text);
  EXPECT_THAT(differences(config, again), IsEmpty());
}

TEST(RunConfigTest, HoldsAnyNumberOfGroupsInTheirOrder) {
  const auto config =
      parsed(kMinimalText +
                 "optimizer { group { pattern: '*norm*' weight_decay: 0 } group { pattern: 'b' } }",
             {"optimizer.group={ pattern: 'c' rule: LION }"});
  ASSERT_EQ(config.optimizer().group_size(), 3);
  EXPECT_EQ(config.optimizer().group(2).pattern(), "c");
  EXPECT_FALSE(config.optimizer().group(1).has_weight_decay()) << "unset: as the section has it";
  const auto again = parsed(to_text(config));
  EXPECT_EQ(again.SerializeAsString(), config.SerializeAsString());
  EXPECT_EQ(
      to_json(config)["optimizer"]["group"].dump(),
      R"([{"pattern":"*norm*","weight_decay":0.0},{"pattern":"b"},{"pattern":"c","rule":"LION"}])");
  const auto found = differences(parsed(kMinimalText), config);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].path, "optimizer.group");
  EXPECT_EQ(found[0].before, "");
  EXPECT_EQ(
      found[0].after,
      R"({ pattern: "*norm*" weight_decay: 0 } { pattern: "b" } { pattern: "c" rule: LION })");
  EXPECT_FALSE(found[0].fixed_at_resume) << "a resumed run compares the states";
}

TEST(RunConfigTest, DropsTheGroupsBeforeAnEmptyOverride) {
  const auto config = parsed(kMinimalText + "optimizer { group { pattern: 'a' } }",
                             {"optimizer.group=", "optimizer.group={ pattern: 'b' }"});
  ASSERT_EQ(config.optimizer().group_size(), 1);
  EXPECT_EQ(config.optimizer().group(0).pattern(), "b");
}

TEST(RunConfigTest, NamesTheFieldsInWhichTwoDiffer) {
  const auto before = parsed(kMinimalText);
  const auto after = parsed(kMinimalText, {"run.seed=1", "checkpoint.every=5"});
  const auto found = differences(before, after);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].path, "run.seed");
  EXPECT_EQ(found[0].before, "42");
  EXPECT_EQ(found[0].after, "1");
  EXPECT_TRUE(found[0].fixed_at_resume);
  EXPECT_EQ(found[1].path, "checkpoint.every");
  EXPECT_FALSE(found[1].fixed_at_resume);
}

TEST(RunConfigTest, CountsAnUnsetFieldAsItsDefaultInADifference) {
  proto::RunConfig set;
  set.mutable_run()->set_seed(42);
  EXPECT_THAT(differences(proto::RunConfig(), set), IsEmpty());
}

TEST(RunConfigTest, BecomesJsonWithNumbersAsNumbersAndNamesAsStrings) {
  const auto json = to_json(parsed(kMinimalText, {"run.seed=18446744073709551615"}));
  EXPECT_EQ(json["run"]["seed"], 18446744073709551615u);
  EXPECT_EQ(json["train"]["steps"], 100);
  EXPECT_EQ(json["optimizer"]["beta2"], 0.95);
  EXPECT_EQ(json["optimizer"]["rule"], "ADAMW");
  EXPECT_EQ(json["model"]["tied_embeddings"], true);
  EXPECT_EQ(json["run"]["dir"], "runs/a");
  EXPECT_EQ(json["run"]["threads"], 0);
  EXPECT_EQ(json.size(), 9u);
}

TEST(RunConfigTest, LoadsEveryConfigurationThatComesWithTheProject) {
  const std::filesystem::path folder = std::string(FLASHSHARD_TEST_DATA) + "/../launch/configs";
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    EXPECT_NO_THROW(load_run_config(entry.path(), {})) << entry.path();
    names.push_back(entry.path().filename());
  }
  EXPECT_THAT(names, ::testing::IsSupersetOf({"quickstart.textproto", "tiny.textproto"}));
}

class ConfigFileTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string written(const std::string& name, const std::string& text) {
    const std::string path = folder_ / name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  std::string refusal_of(const std::string& path) {
    try {
      load_run_config(path, {});
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      EXPECT_THAT(error.what(), HasSubstr(path));
      return error.what();
    }
    return "accepted";
  }
  std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("config_file_test." + std::to_string(getpid()));
};

TEST_F(ConfigFileTest, IsReadWithItsOverrides) {
  const std::vector<std::string> overrides = {"train.steps=3"};
  EXPECT_EQ(load_run_config(written("a.textproto", kMinimalText), overrides).train().steps(), 3);
}

TEST_F(ConfigFileTest, IsRefusedWhenMissing) {
  EXPECT_THAT(refusal_of(folder_ / "none.textproto"), HasSubstr("No such file"));
}

TEST_F(ConfigFileTest, IsRefusedWhenItIsAFolder) {
  EXPECT_THAT(refusal_of(folder_), HasSubstr("is a folder"));
}

TEST_F(ConfigFileTest, IsRefusedWhenTooLarge) {
  EXPECT_THAT(refusal_of(written("large", kMinimalText + std::string(kMaximumConfigBytes, '#'))),
              HasSubstr("at most 1048576 bytes"));
}

TEST_F(ConfigFileTest, IsReadUpToTheLargestSize) {
  const std::string comment(kMaximumConfigBytes - kMinimalText.size(), '#');
  EXPECT_NO_THROW(load_run_config(written("largest", kMinimalText + comment), {}));
}

TEST_F(ConfigFileTest, IsRefusedWhenBinary) {
  EXPECT_THAT(refusal_of(written("binary", std::string("run\0{}", 6))),
              HasSubstr("0x00 at byte 3"));
}

}  // namespace
}  // namespace flashshard
