// What is refused, and in which words: every message names the path, the place and, where there is
// one, the right name.
#include <gmock/gmock.h>
#include <google/protobuf/message.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "runtime/config/schema.h"
#include "runtime/config/validation.h"
#include "tests/runtime/config/config_text.h"

namespace flashshard {
namespace {

using test::kMinimalText;
using test::parsed;
using test::refusal;
using test::refused_override;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

struct WrongName {
  std::string path;        // as it stands in the file or after --set
  std::string text;        // in text format
  std::string suggestion;  // empty: none is near
};
class UnknownFieldTest : public ::testing::TestWithParam<WrongName> {};

TEST_P(UnknownFieldTest, IsRefusedInAFileWithItsPathPlaceAndTheNearestName) {
  const std::string message = refusal(kMinimalText + GetParam().text);
  EXPECT_THAT(message, StartsWith("unknown field " + GetParam().path + " (a.textproto:5:"));
  if (GetParam().suggestion.empty()) {
    EXPECT_THAT(message, Not(HasSubstr("did you mean")));
  } else {
    EXPECT_THAT(message, HasSubstr("did you mean " + GetParam().suggestion + "?"));
  }
}

TEST_P(UnknownFieldTest, IsRefusedAsAnOverrideWithTheNearestName) {
  const std::string message = refused_override({GetParam().path + "=1"});
  EXPECT_THAT(message, StartsWith("unknown field " + GetParam().path + " (--set)"));
  if (!GetParam().suggestion.empty()) {
    EXPECT_THAT(message, HasSubstr("did you mean " + GetParam().suggestion + "?"));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Names, UnknownFieldTest,
    ::testing::Values(
        WrongName{"optimizer.learning_rte", "optimizer { learning_rte: 1 }",
                  "optimizer.learning_rate"},
        WrongName{"optimizer.laerning_rate", "optimizer: < laerning_rate: 1 >",
                  "optimizer.learning_rate"},
        WrongName{"optimiser", "optimiser { }", "optimizer"},
        WrongName{"learning_rate", "learning_rate: 1", "optimizer.learning_rate"},
        WrongName{"train.learning_rate", "train { learning_rate: 1 }", "optimizer.learning_rate"},
        WrongName{"data.warmup_step", "data { warmup_step: 1 }", "schedule.warmup_steps"},
        WrongName{"checkpoint.Keep_Last", "checkpoint { Keep_Last: 1 }", "checkpoint.keep_last"},
        WrongName{"parallelism.groups_of_order", "parallelism { groups_of_order: 1 }", ""},
        WrongName{"model.xyzzyxyzzy", "model { xyzzyxyzzy { a: 1 } }", ""}));

TEST(UnknownFieldTest, IsReportedWhereItsNameStands) {
  EXPECT_THAT(refusal(kMinimalText + "optimizer {\n  beta1: 0.9\n  beta3\n  : 0.9\n}"),
              HasSubstr("unknown field optimizer.beta3 (a.textproto:7:3)"));
}

TEST(UnknownFieldTest, KeepsALongOrUnprintableNameOnOneShortLine) {
  EXPECT_THAT(refused_override({"a\nb=1"}), StartsWith("unknown field \"a\\x0ab\""));
  const std::string lengthy(10000, 'a');
  EXPECT_LT(refused_override({lengthy + "=1"}).size(), 200u);
  EXPECT_LT(refused_override({"train.steps=" + lengthy}).size(), 200u);
  EXPECT_LT(refusal(kMinimalText + lengthy + ": 1").size(), 200u);
  EXPECT_LT(refusal(kMinimalText + "schedule { kind: " + lengthy + " }").size(), 250u);
  EXPECT_LT(refusal(kMinimalText + "schedule { warmup_steps: " + lengthy + " }").size(), 350u);
}

// Settings of later work: they enter the schema with the code behind them.
class LaterFieldTest : public ::testing::TestWithParam<std::string> {};
TEST_P(LaterFieldTest, IsUnknown) {
  EXPECT_THAT(refused_override({GetParam() + "=1"}), StartsWith("unknown field " + GetParam()));
}
INSTANTIATE_TEST_SUITE_P(Paths, LaterFieldTest,
                         ::testing::Values("parallelism.hybrid", "optimizer.galore_rank",
                                           "checkpoint.asynchronous", "optimizer.weight_format"));

struct WrongValue {
  std::string assignment;
  std::string message;
};
class WrongOverrideTest : public ::testing::TestWithParam<WrongValue> {};
TEST_P(WrongOverrideTest, IsRefusedWithPathValueAndWhatIsAllowed) {
  EXPECT_THAT(refused_override({GetParam().assignment}), HasSubstr(GetParam().message));
}
INSTANTIATE_TEST_SUITE_P(
    Values, WrongOverrideTest,
    ::testing::Values(
        WrongValue{"optimizer.beta1=1", "optimizer.beta1 is 1, allowed: >= 0, < 1 (--set)"},
        WrongValue{"optimizer.beta2=-0.5", "optimizer.beta2 is -0.5, allowed: >= 0, < 1"},
        WrongValue{"optimizer.learning_rate=0", "optimizer.learning_rate is 0, allowed: > 0"},
        WrongValue{"optimizer.learning_rate=nan", "optimizer.learning_rate is nan, allowed: > 0"},
        WrongValue{"optimizer.learning_rate=inf", "optimizer.learning_rate is inf, allowed: > 0"},
        WrongValue{"optimizer.learning_rate=fast",
                   "optimizer.learning_rate is \"fast\", allowed: number > 0"},
        WrongValue{"train.steps=0", "train.steps is 0, allowed: >= 1"},
        WrongValue{"train.steps=10x", "train.steps is \"10x\", allowed: integer >= 1"},
        WrongValue{"train.steps=", "train.steps is \"\", allowed: integer"},
        WrongValue{"train.steps=1.5", "train.steps is \"1.5\", allowed: integer"},
        WrongValue{"train.steps=99999999999999999999", "train.steps is \"99999999999999999999\""},
        WrongValue{"run.seed=-1", "run.seed is \"-1\", allowed: integer >= 0"},
        WrongValue{"run.threads=5000000000", "run.threads is \"5000000000\""},
        WrongValue{"run.deadline_seconds=0", "run.deadline_seconds is 0, allowed: > 0"},
        WrongValue{"run.dir=", "run.dir is empty (--set)"},
        WrongValue{"run.dir=a\nb", "control character 0x0a at byte 1"},
        WrongValue{"run.dir=\x7f", "control character 0x7f"},
        WrongValue{"run.dir=\xff", "is not UTF-8 (run.dir, --set)"},
        WrongValue{"checkpoint.at_end=yes", "checkpoint.at_end is \"yes\", allowed: true or false"},
        WrongValue{"checkpoint.keep_last=0", "checkpoint.keep_last is 0, allowed: >= 1"},
        WrongValue{"parallelism.bucket_bytes=4095", "allowed: >= 4096"},
        WrongValue{"parallelism.stage=4", "parallelism.stage is 4, allowed: 0, 1, 2 or 3 (--set)"},
        WrongValue{"optimizer.master_weight_bits=16",
                   "optimizer.master_weight_bits is 16, allowed: 0, 24 or 32"},
        WrongValue{"optimizer.rule=adamw", "did you mean ADAMW?"},
        WrongValue{
            "optimizer.rule=MUON",
            "optimizer.rule is \"MUON\", allowed: name ADAMW, ADAM, LION, SGD or SGDW (--set)"},
        WrongValue{"optimizer.state=0", "allowed: name COMPANDED or FP32"},
        WrongValue{"schedule.kind=COSIN", "did you mean COSINE?"},
        WrongValue{"model.preset=quikstart", "did you mean quickstart?"},
        WrongValue{"model.preset=7b",
                   "model.preset is \"7b\", allowed: tiny or quickstart or 25m or "},
        WrongValue{"model.preset=llama-3.1-1b", "did you mean llama-3.2-1b?"},
        WrongValue{"model.rope_scaling=YARN",
                   "model.rope_scaling is \"YARN\", allowed: name NONE or LLAMA3 (--set)"},
        WrongValue{"model.rope_scaling_factor=0.5",
                   "model.rope_scaling_factor is 0.5, allowed: >= 1"},
        WrongValue{"model.max_position_embeddings=-1",
                   "model.max_position_embeddings is -1, allowed: >= 0"},
        WrongValue{"optimizer=ADAMW", "optimizer is a section"},
        WrongValue{"train.steps", "--set needs path=value"},
        WrongValue{"optimizer.group.pattern=a", "did you mean optimizer.group?"},
        WrongValue{"optimizer.group=*norm*", "cannot read the configuration"},
        WrongValue{
            "optimizer.group={ patern: 'a' }",
            "unknown field optimizer.group[0].patern (--set optimizer.group:1:21). Hint: did you "
            "mean pattern?"},
        WrongValue{"optimizer.group={ pattern: 'a' learning_rate_factor: -1 }",
                   "optimizer.group[0].learning_rate_factor is -1, allowed: >= 0, <= 1000 (--set)"},
        WrongValue{"optimizer.group={ pattern: 'a' } weight_decay: 0",
                   "optimizer.group takes one message in braces, not"},
        WrongValue{"optimizer.group={ pattern: 'a' } } data { path: 'x'",
                   "optimizer.group takes one message in braces, not"},
        WrongValue{"optimizer.group={ rule: LION }",
                   "optimizer.group[0].pattern is not set and has no default"},
        WrongValue{"optimizer.group={ pattern: '' }", "optimizer.group[0].pattern is empty"},
        WrongValue{"=3", "--set needs path=value"}, WrongValue{"", "--set needs path=value"}));

class WrongTextTest : public ::testing::TestWithParam<WrongValue> {};
TEST_P(WrongTextTest, IsRefusedWithItsPlace) {
  EXPECT_THAT(refusal(kMinimalText + GetParam().assignment),
              AllOf(HasSubstr(GetParam().message), HasSubstr("(a.textproto:")));
}
INSTANTIATE_TEST_SUITE_P(
    Texts, WrongTextTest,
    ::testing::Values(
        WrongValue{"optimizer { beta1: 1.5 }",
                   "optimizer.beta1 is 1.5, allowed: >= 0, < 1 (a.textproto:5:13)"},
        WrongValue{"optimizer { state: INT8 }",
                   "unknown value INT8 of optimizer.state, allowed: COMPANDED or FP32 "
                   "(a.textproto:5:20)"},
        WrongValue{
            "optimizer { group { pattern: 'a' } group { pattern: 'b' master_weight_bits: 8 } "
            "}",
            "optimizer.group[1].master_weight_bits is 8, allowed: 0, 24 or 32 "
            "(a.textproto:5:57)"},
        WrongValue{"optimizer { group { pattern: 'a' rule: ADAN } }",
                   "unknown value ADAN of optimizer.group[0].rule"},
        WrongValue{"optimizer { group: [ { pattern: 'a' }, { pattern: 'b' rule: ADAN } ] }",
                   "unknown value ADAN of optimizer.group[1].rule"},
        WrongValue{"optimizer { group: [ { patern: 'a' } ] }",
                   "unknown field optimizer.group[0].patern (a.textproto:5:24)"},
        WrongValue{"optimizer { group: [] group: [{ pattern: 'a' }, < pattern: 'b' >] "
                   "group { pattern: 'c' master_weight_bits: 8 } bata1: 0.9 }",
                   "unknown field optimizer.bata1"},
        WrongValue{"optimizer { group: [] group: [{ pattern: 'a' }, < pattern: 'b' >] "
                   "group { pattern: 'c' master_weight_bits: 8 } }",
                   "optimizer.group[2].master_weight_bits is 8, allowed: 0, 24 or 32 "
                   "(a.textproto:5:88)"},
        WrongValue{"optimizer { group: [ { pattern: 'a' } { pattern: 'b' } ] }",
                   "cannot read the configuration"},
        WrongValue{"optimizer { group: [ 3 ] }", "cannot read the configuration"},
        WrongValue{"optimizer { group: [ { pattern: 'a' } ", "cannot read the configuration"},
        WrongValue{"schedule { kind: WSQ }", "did you mean WSD?"},
        WrongValue{"schedule { kind: 9 }", "near schedule.kind"},
        WrongValue{"checkpoint { at_end: maybe }", "near checkpoint.at_end"},
        WrongValue{"checkpoint { every: 1.5 }", "near checkpoint.every"},
        WrongValue{"checkpoint { every: \"1\" }", "near checkpoint.every"},
        WrongValue{"checkpoint { every: 1 every: 2 }", "specified multiple times"},
        WrongValue{"train { log_every: 2 }", "\"train\" is specified multiple times"},
        WrongValue{"checkpoint { every: 99999999999999999999 }", "near checkpoint.every"},
        WrongValue{"checkpoint { every: [1] }", "near checkpoint.every"},
        WrongValue{"checkpoint { every { } }", "cannot read the configuration"},
        WrongValue{"checkpoint: 3", "near checkpoint"},
        WrongValue{"checkpoint { every: 1", "cannot read the configuration"},
        WrongValue{"}", "cannot read the configuration"},
        WrongValue{"[other.extension]: 3", "cannot read the configuration"},
        WrongValue{"checkpoint { every: 1 } ?", "cannot read the configuration"},
        WrongValue{"optimizer { epsilon: \"unterminated", "near optimizer.epsilon"},
        WrongValue{"schedule { warmup_steps: -1 }", "schedule.warmup_steps is -1"},
        WrongValue{"optimizer { clip_norm: inf }", "optimizer.clip_norm is inf, allowed: >= 0"}));

TEST(WrongTextTest, MayHoldEveryFormOfTheTextFormat) {
  const auto config = parsed(
      "# a comment\nrun: < dir: 'runs/' \"a\", seed: 0x10; >\nmodel { preset: \"tiny\" "
      "norm_epsilon: "
      "1e-6f }\ndata { path: \"d\" }\ntrain { steps: 1 sequence_length: 2 micro_batch: 1 "
      "global_batch: 1 }\nschedule { kind: 3 warmup_steps: 0 }");
  EXPECT_EQ(config.run().dir(), "runs/a");
  EXPECT_EQ(config.run().seed(), 16u);
  EXPECT_EQ(config.schedule().kind(), proto::ScheduleKind::WSD);
}

TEST(WrongTextTest, IsRefusedWhenAnEscapeMakesAStringThatIsNoText) {
  EXPECT_THAT(refusal("run { dir: \"a\\000b\" }" + kMinimalText.substr(kMinimalText.find('\n'))),
              HasSubstr("control character 0x00 at byte 1"));
}

class RequiredFieldTest : public ::testing::TestWithParam<std::string> {};
TEST_P(RequiredFieldTest, IsNamedWhenUnset) {
  const auto* field = config::find_setting(GetParam());
  proto::RunConfig config = parsed(kMinimalText);
  auto& section = config::section_of(config, *field);
  section.GetReflection()->ClearField(&section, field->field);
  config.mutable_model()->clear_preset();
  EXPECT_THAT(refusal(config.DebugString()),
              StartsWith(GetParam() + " is not set and has no default (a.textproto)"));
}
std::vector<std::string> required_fields() {
  std::vector<std::string> paths;
  for (const auto& field : config::setting_fields()) {
    if (field.setting().required()) paths.push_back(field.path);
  }
  return paths;
}
INSTANTIATE_TEST_SUITE_P(Paths, RequiredFieldTest, ::testing::ValuesIn(required_fields()));

TEST(RequiredFieldTest, OfTheModelMayComeFromAPreset) {
  EXPECT_THAT(refused_override({"model.preset="}),
              AllOf(StartsWith("model.hidden_size is not set"), HasSubstr("model.preset")));
  EXPECT_THAT(refusal(""), StartsWith("run.dir is not set"));
}

struct BrokenRule {
  std::vector<std::string> overrides;
  std::string path;
  std::string other_path;
};
class FieldRuleTest : public ::testing::TestWithParam<BrokenRule> {};
TEST_P(FieldRuleTest, NamesEveryFieldThatTakesPart) {
  EXPECT_THAT(refused_override(GetParam().overrides),
              AllOf(HasSubstr(GetParam().path), HasSubstr(GetParam().other_path),
                    HasSubstr("(a.textproto)")));
}
const std::vector<BrokenRule> kBrokenRules = {
    {{"model.dtype=FP32", "optimizer.state=FP32", "parallelism.reduce=EACH",
      "parallelism.accumulator=BF16"},
     "model.dtype FP32",
     "parallelism.accumulator FP32 or MOMENTS, not BF16"},
    {{"parallelism.reproducible=true", "parallelism.reduce=EACH"},
     "parallelism.reproducible",
     "run.threads above 0"},
    {{"model.kv_heads=3"}, "model.heads (2)", "model.kv_heads (3)"},
    {{"model.hidden_size=33"}, "model.hidden_size (33)", "model.heads (2)"},
    {{"model.hidden_size=34"}, "model.hidden_size (34)", "must be even"},
    {{"model.head_dim=7"}, "model.head_dim (7)", "must be even"},
    {{"model.rope_scaling=LLAMA3", "model.rope_low_frequency_factor=4"},
     "model.rope_low_frequency_factor (4)",
     "model.rope_high_frequency_factor (4)"},
    {{"model.max_position_embeddings=31"},
     "train.sequence_length (32)",
     "model.max_position_embeddings (31)"},
    {{"train.global_batch=9"}, "train.global_batch (9)", "train.micro_batch (2)"},
    {{"train.micro_batch=4096", "train.global_batch=4096", "train.sequence_length=1048576"},
     "train.micro_batch (4096)",
     "train.sequence_length (1048576)"},
    {{"train.steps=1000000000", "train.global_batch=1048576", "train.sequence_length=1048576"},
     "train.steps (1000000000)",
     "train.global_batch (1048576)"},
    {{"schedule.warmup_steps=101"}, "schedule.warmup_steps (101)", "train.steps (100)"},
    {{"run.profile=101"}, "run.profile (101)", "train.steps (100)"},
    {{"schedule.kind=WSD", "schedule.warmup_steps=60", "schedule.decay_fraction=0.5"},
     "schedule.warmup_steps (60)",
     "schedule.decay_fraction (0.5)"},
    {{"optimizer.learning_rate=50"},
     "optimizer.learning_rate (50)",
     "optimizer.weight_decay (0.1)"},
    {{"optimizer.decouple_lr=true", "optimizer.weight_decay=1"},
     "optimizer.weight_decay (1)",
     "optimizer.decouple_lr"},
    {{"optimizer.group={ pattern: '*' learning_rate_factor: 1000 weight_decay: 1 }"},
     "optimizer.group[0]",
     "learning_rate_factor (1000)"},
    {{"optimizer.decouple_lr=true", "optimizer.group={ pattern: '*' rule: SGD }"},
     "optimizer.decouple_lr",
     "optimizer.group[0].rule SGD"},
    {{"model.dtype=FP32", "optimizer.state=FP32",
      "optimizer.group={ pattern: '*' state: COMPANDED }"},
     "model.dtype FP32",
     "optimizer.group[0].state FP32"},
    {{"model.dtype=FP32", "optimizer.state=FP32",
      "optimizer.group={ pattern: '*' master_weight_bits: 24 }"},
     "model.dtype FP32",
     "optimizer.group[0].master_weight_bits 32"},
    {{"optimizer.decouple_lr=true", "optimizer.rule=SGD"},
     "optimizer.decouple_lr",
     "optimizer.rule SGD"},
    {{"optimizer.beta1=0.99999999"}, "optimizer.beta1 is 0.99999999", "1 in fp32"},
    {{"optimizer.beta2=0.99999998"}, "optimizer.beta2 is 0.99999998", "0.99999994"},
    {{"optimizer.nesterov=true"}, "optimizer.nesterov", "not ADAMW"},
    {{"optimizer.rule=SGDW", "optimizer.beta1=0", "optimizer.dampening=0.1"},
     "optimizer.dampening",
     "optimizer.beta1 above 0, not SGDW and 0"},
    {{"optimizer.rule=SGD", "optimizer.nesterov=true", "optimizer.dampening=0.1"},
     "optimizer.nesterov",
     "optimizer.dampening 0, not 0.1"},
    {{"optimizer.state_format=FLASHOPTIM_V1", "optimizer.rounding=STOCHASTIC"},
     "optimizer.state_format FLASHOPTIM_V1",
     "optimizer.rounding NEAREST"},
    {{"parallelism.order=TWO_LEVEL"},
     "parallelism.order TWO_LEVEL",
     "parallelism.order_group 2 or more"},
    {{"parallelism.order_group=8"}, "parallelism.order FLAT", "parallelism.order_group 0, not 8"},
    {{"model.dtype=FP32"}, "model.dtype FP32", "optimizer.state FP32"},
    {{"model.dtype=FP32", "optimizer.state=FP32", "optimizer.master_weight_bits=24"},
     "model.dtype FP32",
     "optimizer.master_weight_bits 32"},
    {{"checkpoint.every=40", "checkpoint.keep_every=100"},
     "checkpoint.keep_every (100)",
     "checkpoint.every (40)"},
    {{"checkpoint.keep_every=100"}, "checkpoint.keep_every (100)", "checkpoint.every (0)"},
};
INSTANTIATE_TEST_SUITE_P(Rules, FieldRuleTest, ::testing::ValuesIn(kBrokenRules));

TEST(FieldRuleTest, EachIsBrokenBySomeCaseAbove) {
  std::vector<proto::RunConfig> broken;
  for (const BrokenRule& rule : kBrokenRules) {
    // Sections as given, unvalidated: the overrides over a valid configuration.
    proto::RunConfig config = parsed(kMinimalText);
    config.mutable_model()->set_head_dim(0);
    config::Origins origins;
    for (const auto& assignment : rule.overrides) {
      config::apply_override(assignment, config, origins);
    }
    broken.push_back(config);
  }
  for (const config::FieldRule& rule : config::field_rules()) {
    EXPECT_TRUE(std::ranges::any_of(broken, [&](const auto& config) {
      return rule.violation(config).has_value();
    })) << rule.statement;
  }
}

TEST(FieldRuleTest, RefusesShardingsThatTheTableOfRefusalsNames) {
  EXPECT_THAT(refused_override({"parallelism.shard_group=2", "parallelism.stage=0"}),
              AllOf(StartsWith("parallelism.shard_group at parallelism.stage 0 is refused: "),
                    HasSubstr("(a.textproto)"), HasSubstr("set stage 1, 2 or 3")));
  EXPECT_EQ(refused_override({"parallelism.shard_group=2", "parallelism.stage=2"}), "accepted");
  const std::vector<std::string> moments = {
      "parallelism.reduce=EACH", "parallelism.accumulator=MOMENTS", "parallelism.release=true",
      "parallelism.stage=2",     "optimizer.skip_scope=BUCKET",     "optimizer.clip_norm=0",
      "optimizer.state=FP32"};
  EXPECT_EQ(refused_override(moments), "accepted");
  for (const std::string change :
       {"optimizer.state=COMPANDED", "optimizer.rule=LION", "optimizer.state_format=FLASHOPTIM_V1",
        "parallelism.reduce=LAST", "optimizer.clip_norm=1"}) {
    std::vector<std::string> changed = moments;
    changed.push_back(change);
    EXPECT_NE(refused_override(changed), "accepted") << change;
  }
}

TEST(FieldRuleTest, AllowsTheLimitItself) {
  EXPECT_EQ(refused_override({"schedule.warmup_steps=100"}), "accepted");
  EXPECT_EQ(refused_override(
                {"schedule.kind=WSD", "schedule.warmup_steps=50", "schedule.decay_fraction=0.5"}),
            "accepted");
  EXPECT_EQ(refused_override({"optimizer.beta1=0", "optimizer.clip_norm=0",
                              "optimizer.weight_decay=0", "optimizer.learning_rate=100"}),
            "accepted");
  EXPECT_EQ(refused_override({"parallelism.order=TWO_LEVEL", "parallelism.order_group=2"}),
            "accepted");
  EXPECT_EQ(refused_override({"parallelism.bucket_bytes=4096", "schedule.final_fraction=1"}),
            "accepted");
}

struct Bytes {
  std::string bytes;
  bool text;
};
class Utf8Test : public ::testing::TestWithParam<Bytes> {};
TEST_P(Utf8Test, DecidesWhetherBytesAreText) {
  if (GetParam().text) {
    EXPECT_NO_THROW(config::require_text(GetParam().bytes, "here", true));
  } else {
    EXPECT_THROW(config::require_text(GetParam().bytes, "here", true), Error);
  }
}
INSTANTIATE_TEST_SUITE_P(
    Sequences, Utf8Test,
    ::testing::Values(Bytes{"", true}, Bytes{"a\r\n\tb", true}, Bytes{"\xc3\xa4", true},
                      Bytes{"\xe2\x82\xac", true}, Bytes{"\xf0\x9f\x98\x80", true},
                      Bytes{"\xf4\x8f\xbf\xbf", true}, Bytes{"\xc3", false}, Bytes{"\x80", false},
                      Bytes{"\xc0\x80", false}, Bytes{"\xe0\x80\x80", false},
                      Bytes{"\xed\xa0\x80", false}, Bytes{"\xf0\x80\x80\x80", false},
                      Bytes{"\xf4\x90\x80\x80", false}, Bytes{"\xf5\x80\x80\x80", false},
                      Bytes{"\xe2\x28\xa1", false}, Bytes{"\xe2\x82", false}));

TEST(GarbageTest, RandomBytesAreRefusedInOneLine) {
  std::mt19937 random(1);
  for (int round = 0; round < 3000; ++round) {
    std::string text(1 + random() % 200, '\0');
    const bool printable = round % 2 == 0;
    for (char& c : text) c = static_cast<char>(printable ? ' ' + random() % 95 : random());
    EXPECT_THAT(refusal(text), Not(AnyOf(StartsWith("wrong"), StartsWith("more"))));
    EXPECT_NE(refused_override({text}), "accepted");
  }
}

TEST(GarbageTest, MutationsOfAValidFileAreReadOrRefusedInOneLine) {
  const std::string valid = to_text(parsed(kMinimalText));
  constexpr std::string_view kPieces[] = {"{", "}", "<", ">",  ":",  "\"", "-",   "[",   "#",
                                          "9", ".", "e", "\n", "\\", ",",  "inf", "nan", "run"};
  std::mt19937 random(2);
  for (int round = 0; round < 3000; ++round) {
    std::string text = valid;
    for (uint32_t edits = 1 + random() % 4; edits > 0; --edits) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text.erase(at, random() % 8);
          break;
        case 1:
          text.insert(at, kPieces[random() % std::size(kPieces)]);
          break;
        default:
          text[at] = static_cast<char>(random());
      }
    }
    EXPECT_THAT(refusal(text), Not(AnyOf(StartsWith("wrong"), StartsWith("more"))));
  }
}

TEST(GarbageTest, DeepNestingIsRefused) {
  std::string text;
  for (int i = 0; i < 100000; ++i) text += "run{";
  EXPECT_THAT(refusal(text), StartsWith("unknown field run.run"));
}

}  // namespace
}  // namespace flashshard
