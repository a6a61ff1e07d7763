// Which tensors a pattern has, what is refused, and runs whose groups have rates, rules and formats
// of their own.
#include "runtime/parameter_groups.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "runtime/checkpoint/verify.h"
#include "runtime/model/llama_options.h"
#include "tests/runtime/runs.h"

namespace flashshard {
namespace {

using test::Runs;
using ::testing::AllOf;
using ::testing::HasSubstr;

struct Fit {
  std::string name, pattern;
  bool fits;
};
class Patterns : public ::testing::TestWithParam<Fit> {};
TEST_P(Patterns, FitWholeNames) {
  EXPECT_EQ(fits_pattern(GetParam().name, GetParam().pattern), GetParam().fits)
      << GetParam().name << " " << GetParam().pattern;
}
INSTANTIATE_TEST_SUITE_P(
    Names, Patterns,
    ::testing::Values(Fit{"a.norm", "a.norm", true}, Fit{"a.norm", "norm", false},
                      Fit{"a.norm", "*norm", true}, Fit{"a.norm.b", "*norm", false},
                      Fit{"a.norm.b", "*norm*", true}, Fit{"layers.10.q", "layers.1?.q", true},
                      Fit{"layers.1.q", "layers.1?.q", false}, Fit{"anything", "*", true},
                      Fit{"", "*", true}, Fit{"", "?", false}, Fit{"", "", true},
                      Fit{"a", "", false}, Fit{"aXbXc", "a*X*c", true},
                      Fit{"abab.abc", "*ab*abc", true}, Fit{"abab.abd", "*ab*abc", false}));

std::vector<ParameterSpec> llama(bool tied = true) {
  LlamaOptions options;
  options.vocab_size = 100;
  options.hidden_size = 32;
  options.layers = 2;
  options.heads = options.kv_heads = 2;
  options.head_dim = 16;
  options.feed_forward_size = 64;
  options.tied_embeddings = tied;
  return llama_parameters(options);
}

proto::OptimizerSection groups(const std::vector<std::string>& patterns) {
  proto::OptimizerSection optimizer;
  for (const std::string& pattern : patterns) optimizer.add_group()->set_pattern(pattern);
  return optimizer;
}

/// Names of the tensors of group `index`.
std::vector<std::string> names(const proto::OptimizerSection& optimizer, size_t index,
                               const std::vector<ParameterSpec>& parameters = llama()) {
  std::vector<std::string> found;
  const auto members = members_of_groups(optimizer, parameters);
  for (int t : members[index].tensors) {
    found.push_back(parameters[static_cast<size_t>(t)].name);
  }
  return found;
}

TEST(ParameterGroups, OfAPatternAreTheTensorsWhoseNamesFit) {
  const auto optimizer = groups({"*.down_proj.weight"});
  EXPECT_EQ(names(optimizer, 0), (std::vector<std::string>{"model.layers.0.mlp.down_proj.weight",
                                                           "model.layers.1.mlp.down_proj.weight"}));
  EXPECT_EQ(members_of_groups(optimizer, llama())[0].elements, 2 * 32 * 64);
}

TEST(ParameterGroups, HaveATensorByTheNamesOfAllItsPartsOrByAnotherOfItsNames) {
  EXPECT_EQ(names(groups({"model.layers.1.self_attn.?_proj.weight"}), 0),
            (std::vector<std::string>{"model.layers.1.self_attn.qkv_proj.weight",
                                      "model.layers.1.self_attn.o_proj.weight"}));
  EXPECT_EQ(names(groups({"lm_head.weight"}), 0),
            std::vector<std::string>{"model.embed_tokens.weight"});
  EXPECT_EQ(names(groups({"lm_head.weight"}), 0, llama(false)),
            std::vector<std::string>{"lm_head.weight"});
}

TEST(ParameterGroups, ThatComeLastKeepATensor) {
  const auto optimizer = groups({"*norm*", "model.norm.weight", "*.1.input_layernorm.*"});
  EXPECT_EQ(names(optimizer, 0).size(), 3u);
  EXPECT_EQ(names(optimizer, 1), std::vector<std::string>{"model.norm.weight"});
  EXPECT_EQ(names(optimizer, 2), std::vector<std::string>{"model.layers.1.input_layernorm.weight"});
}

std::string refusal(const proto::OptimizerSection& optimizer) {
  try {
    members_of_groups(optimizer, llama());
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "accepted";
}

TEST(ParameterGroups, ThatFitNothingAreRefusedWithTheNearestPattern) {
  EXPECT_THAT(refusal(groups({"*norm*", "*down_porj*"})),
              AllOf(HasSubstr("optimizer.group[1].pattern \"*down_porj*\" fits no parameter"),
                    HasSubstr("did you mean *down_proj*?")));
  EXPECT_THAT(refusal(groups({"model.layers.*.input_layernorm"})),
              HasSubstr("did you mean model.layers.*.input_layernorm.weight?"));
  EXPECT_THAT(refusal(groups({"xyzzy"})),
              HasSubstr("the model has model.embed_tokens.weight, model.layers.*."));
}

TEST(ParameterGroups, OfAPartOfATensorAreRefusedWithTheReason) {
  EXPECT_THAT(refusal(groups({"*.q_proj.weight"})),
              AllOf(HasSubstr("model.layers.0.self_attn.q_proj.weight, a part of "
                              "model.layers.0.self_attn.qkv_proj.weight"),
                    HasSubstr("stored as one tensor")));
}

TEST(ParameterGroups, ThatLoseAllTheirTensorsAreRefused) {
  EXPECT_THAT(refusal(groups({"model.norm.weight", "*norm*"})),
              AllOf(HasSubstr("optimizer.group[0]"), HasSubstr("keeps nothing"),
                    HasSubstr("general patterns first")));
}

TEST(ParameterGroups, AreListedWithTheirTensorsAndParameters) {
  auto optimizer = groups({"*norm*", "*mlp*"});
  optimizer.mutable_group(1)->set_learning_rate_factor(0.5);
  optimizer.mutable_group(1)->set_rule(proto::UpdateRuleKind::LION);
  EXPECT_EQ(parameter_group_table(optimizer, llama()),
            "Parameter groups\n"
            "  pattern   tensors  parameters  differs in\n"
            "  --------  -------  ----------  ------------------------------------\n"
            "  *norm*          5         160\n"
            "  *mlp*           4      12,288  learning_rate_factor: 0.5 rule: LION\n"
            "  no group        5      11,392\n");
  EXPECT_EQ(parameter_group_table({}, llama()), "");
}

TEST(ParameterGroups, MayChangeAtAResumeAsLongAsEveryStateIsTheSame) {
  const auto parameters = llama();
  auto before = groups({"*norm*"});
  auto after = groups({"*norm*", "*mlp*"});
  after.mutable_group(0)->set_weight_decay(0.1);
  after.mutable_group(1)->set_learning_rate_factor(2);
  EXPECT_NO_THROW(require_same_states(before, after, parameters, "there"));
  after.mutable_group(0)->set_state(proto::OptimizerState::FP32);
  EXPECT_NO_THROW(require_same_states(before, after, parameters, "there"))
      << "vectors have fp32 state without a group, too";
  after.mutable_group(1)->set_master_weight_bits(32);
  try {
    require_same_states(before, after, parameters, "there");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("model.layers.0.mlp.gate_up_proj.weight had rule ADAMW, state "
                                "COMPANDED, master_weight_bits 24 when"),
                      HasSubstr("master_weight_bits 32 now"), HasSubstr("(there)")));
  }
}

/// A rule, a format, a rate and a decay of its own in each.
const std::vector<std::string> kGroups = {
    "optimizer.group={ pattern: '*norm*' weight_decay: 0.05 }",
    "optimizer.group={ pattern: '*embed*' state: FP32 master_weight_bits: 32 }",
    "optimizer.group={ pattern: '*mlp*' rule: LION learning_rate_factor: 0.1 }"};

TEST_F(Runs, WithGroupsOfTheirOwnRulesAndFormatsLearnAndResumeToTheSameBits) {
  ASSERT_EQ(run(2, config("whole", kGroups)), ExitCode::kDone);
  EXPECT_LT(metrics("whole").back()["loss"].get<double>(),
            0.8 * metrics("whole").front()["loss"].get<double>());
  EXPECT_TRUE(checkpoint::verify((folder_ / "whole").string()).findings.empty());
  const auto older = (folder_ / "whole" / "checkpoints" / "step-00000010").string();
  ASSERT_EQ(run(2, config("branch", kGroups), older), ExitCode::kDone);
  EXPECT_EQ(hash("branch"), hash("whole"));

  std::ifstream log(folder_ / "whole" / "logs" / "rank-00000.log");
  std::stringstream lines;
  lines << log.rdbuf();
  EXPECT_THAT(lines.str(), HasSubstr("Parameter groups"));
  std::ifstream file(folder_ / "whole" / "memory.json");
  const auto memory = nlohmann::json::parse(file);
  for (const auto& rank : memory["ranks"]) {
    for (const char* c : {"momentum", "variance", "scales", "correction"}) {
      EXPECT_EQ(rank["tagged"][c], rank["predicted"][c]) << c;
    }
  }
}

TEST_F(Runs, ResumeWithOtherRatesButNotWithOtherFormatsOfAGroup) {
  ASSERT_EQ(run(2, config("a", {"train.steps=10", kGroups[2]})), ExitCode::kDone);
  const Error error =
      failure(2, config("a", {"optimizer.group={ pattern: '*mlp*' learning_rate_factor: 0.1 }"}));
  EXPECT_EQ(error.code(), ExitCode::kUsage);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("had rule LION"), HasSubstr("has rule ADAMW")));
  EXPECT_EQ(run(2, config("a", {"train.steps=12",
                                "optimizer.group={ pattern: '*mlp*' rule: LION "
                                "learning_rate_factor: 0.2 }"})),
            ExitCode::kDone);
}

TEST_F(Runs, EndOnAllRanksBeforeTheFirstStepWhenAPatternFitsNothing) {
  const Error error = failure(3, config("a", {"optimizer.group={ pattern: '*nrom*' }"}));
  EXPECT_EQ(error.code(), ExitCode::kUsage);
  EXPECT_THAT(error.what(), HasSubstr("did you mean *norm*?"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "a" / "metrics.jsonl"));
}

}  // namespace
}  // namespace flashshard
