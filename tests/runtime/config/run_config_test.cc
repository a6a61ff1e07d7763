// What a configuration becomes: precedence, presets, defaults, round trips.
#include "runtime/config/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/config/presets.h"
#include "runtime/config/schema.h"
#include "runtime/config/validation.h"
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

class PresetTest : public ::testing::TestWithParam<config::ModelPreset> {};
TEST_P(PresetTest, IsAWholeShapeThatSatisfiesEveryRule) {
  const auto& preset = GetParam();
  const auto config = parsed(kMinimalText, {"model.preset=" + std::string(preset.name)});
  EXPECT_EQ(config.model().hidden_size(), preset.hidden_size);
  EXPECT_EQ(config.model().layers(), preset.layers);
  EXPECT_EQ(config.model().heads(), preset.heads);
  EXPECT_EQ(config.model().kv_heads(), preset.kv_heads);
  EXPECT_EQ(config.model().feed_forward_size(), preset.feed_forward_size);
}
INSTANTIATE_TEST_SUITE_P(Presets, PresetTest,
                         ::testing::ValuesIn(config::model_presets().begin(),
                                             config::model_presets().end()),
                         [](const auto& preset) {
                           return "shape_" + std::string(preset.param.name);
                         });

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
  EXPECT_EQ(json.size(), 8u);
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
