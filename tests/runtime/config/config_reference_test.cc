// The schema documents itself, and the committed reference says what the schema says.
#include "runtime/config/reference.h"

#include <gmock/gmock.h>
#include <google/protobuf/message.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>

#include "kernels/error.h"
#include "runtime/config/schema.h"
#include "runtime/config/validation.h"

namespace flashshard {
namespace {

using google::protobuf::FieldDescriptor;
using ::testing::HasSubstr;

TEST(ConfigReferenceTest, TheCommittedPageIsTheGeneratedOne) {
  std::ifstream file(std::string(FLASHSHARD_TEST_DATA) + "/../docs/configuration.md");
  std::stringstream committed;
  committed << file.rdbuf();
  EXPECT_EQ(committed.str(), configuration_markdown())
      << "regenerate it: build/flashshard_config_reference docs/configuration.md";
}

TEST(ConfigReferenceTest, TheTablesOfWhatCanBeCombinedAreTheGeneratedOnes) {
  std::ifstream file(std::string(FLASHSHARD_TEST_DATA) + "/../docs/sharding.md");
  std::stringstream committed;
  committed << file.rdbuf();
  EXPECT_EQ(committed.str(), with_legality_tables(committed.str()))
      << "regenerate them: build/flashshard_config_reference docs/configuration.md "
         "docs/sharding.md";
  EXPECT_THROW(with_legality_tables("a page without them"), Error);
}

TEST(ConfigReferenceTest, HelpAndPageNameEverySettingAndRule) {
  const std::string help = field_help();
  const std::string page = configuration_markdown();
  for (const auto& field : config::setting_fields()) {
    EXPECT_THAT(help, HasSubstr("\n  " + field.path + " ("));
    EXPECT_THAT(page, HasSubstr("| `" + field.path + "` |"));
  }
  for (const auto& rule : config::field_rules()) {
    EXPECT_THAT(page, HasSubstr(std::string(rule.statement)));
  }
}

TEST(ConfigReferenceTest, HelpFitsIntoAHundredColumns) {
  std::istringstream help(field_help());
  for (std::string line; std::getline(help, line);) EXPECT_LE(line.size(), 100u) << line;
}

TEST(SchemaTest, EverySettingIsDocumentedAndHasADefaultOrIsRequired) {
  for (const auto& field : config::setting_fields()) {
    EXPECT_TRUE(field.setting().has_doc()) << field.path;
    EXPECT_NE(field.setting().required(), field.field->has_default_value()) << field.path;
    EXPECT_TRUE(field.section->options().GetExtension(proto::setting).has_doc()) << field.path;
    if (const auto* enumeration = field.field->enum_type()) {
      for (int i = 0; i < enumeration->value_count(); ++i) {
        EXPECT_TRUE(enumeration->value(i)->options().HasExtension(proto::meaning)) << field.path;
      }
    }
  }
}

TEST(SchemaTest, EveryNumberIsBoundedBelowAndDefaultsAreInRange) {
  proto::RunConfig defaults;
  for (const auto& field : config::setting_fields()) {
    const auto type = field.field->cpp_type();
    const bool number = type == FieldDescriptor::CPPTYPE_INT32 ||
                        type == FieldDescriptor::CPPTYPE_INT64 ||
                        type == FieldDescriptor::CPPTYPE_DOUBLE;
    const auto& setting = field.setting();
    EXPECT_EQ(number, setting.has_minimum() || setting.has_above() || setting.allowed_size() > 0)
        << field.path;
    if (!setting.required()) continue;
    // A legal value for what has no default, so that only defaults are left to judge.
    auto& section = config::section_of(defaults, field);
    const auto* reflection = section.GetReflection();
    if (type == FieldDescriptor::CPPTYPE_STRING) reflection->SetString(&section, field.field, "a");
    if (type == FieldDescriptor::CPPTYPE_INT32) reflection->SetInt32(&section, field.field, 1);
    if (type == FieldDescriptor::CPPTYPE_INT64) reflection->SetInt64(&section, field.field, 1);
  }
  config::Origins origins;
  for (const auto& field : config::setting_fields()) {
    if (field.setting().required() || field.field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      continue;
    }
    config::apply_override(field.path + "=" + config::value_text(proto::RunConfig(), field),
                           defaults, origins);
  }
  EXPECT_NO_THROW(config::require_ranges(defaults, origins, "defaults"));
}

TEST(SchemaTest, PathsAreUniqueAndFound) {
  std::set<std::string> paths;
  for (const auto& field : config::setting_fields()) {
    EXPECT_TRUE(paths.insert(field.path).second) << field.path;
    EXPECT_EQ(config::find_setting(field.path), &field);
  }
  EXPECT_EQ(config::find_setting("run"), nullptr);
  EXPECT_EQ(config::find_setting(""), nullptr);
}

// Scripts and other tools rely on these paths.
class StablePathTest : public ::testing::TestWithParam<std::string> {};
TEST_P(StablePathTest, Exists) { EXPECT_NE(config::find_setting(GetParam()), nullptr); }
INSTANTIATE_TEST_SUITE_P(
    Paths, StablePathTest,
    ::testing::Values("run.dir", "run.seed", "run.device", "run.deadline_seconds", "model.preset",
                      "model.dtype", "data.path", "train.steps", "train.sequence_length",
                      "train.micro_batch", "train.global_batch", "train.validate_every",
                      "optimizer.rule", "optimizer.state", "optimizer.state_format",
                      "optimizer.master_weight_bits", "optimizer.rounding",
                      "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm",
                      "optimizer.clip_mode", "optimizer.skip_scope", "optimizer.decouple_lr",
                      "optimizer.dampening", "optimizer.nesterov",
                      "optimizer.max_consecutive_skips", "parallelism.stage", "parallelism.reduce",
                      "parallelism.accumulator", "parallelism.reduced_gradient",
                      "parallelism.order", "parallelism.transport", "parallelism.bucket_bytes",
                      "checkpoint.every", "checkpoint.keep_last"));

}  // namespace
}  // namespace flashshard
