// Whole runs at every ZeRO stage: the same bits, resumable at another, and models that evaluate and
// write like any other.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "runtime/evaluate.h"
#include "runtime/trained_model.h"
#include "runtime/write_text.h"
#include "tests/runtime/runs.h"

namespace flashshard {
namespace {

using test::Runs;
using ::testing::HasSubstr;

class Stages : public Runs {
 protected:
  /// A run of 6 steps of 3 micro-batches: one a rank on three ranks. Returns its hash.
  std::string trained(const std::string& name, int world_size,
                      std::vector<std::string> settings = {}) {
    EXPECT_EQ(run(world_size, short_config(name, std::move(settings))), ExitCode::kDone) << name;
    return hash(name);
  }
  proto::RunConfig short_config(const std::string& name, std::vector<std::string> settings) {
    settings.insert(settings.begin(),
                    {"train.steps=6", "train.global_batch=6", "train.micro_batch=2",
                     "train.validate_every=3", "checkpoint.every=3", "model.layers=3"});
    return config(name, settings);
  }
  static std::string bytes_of(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void expect_same_metrics(const std::string& a, const std::string& b) {
    const auto left = metrics(a), right = metrics(b);
    ASSERT_EQ(left.size(), right.size());
    for (size_t i = 0; i < left.size(); ++i) {
      for (const char* key : {"loss", "grad_norm", "tokens", "validation_loss"}) {
        EXPECT_EQ(left[i].value(key, 0.0), right[i].value(key, 0.0)) << key << " of step " << i + 1;
      }
    }
  }
};

TEST_F(Stages, EndWithTheSameBitsLossesAndValidations) {
  for (const std::string tied : {"true", "false"}) {
    const std::string model = "model.tied_embeddings=" + tied;
    const std::string reference = trained("1" + tied, 3, {model});
    for (const std::string stage : {"0", "2", "3"}) {
      SCOPED_TRACE(stage + " " + model);
      EXPECT_EQ(trained(stage + tied, 3, {model, "parallelism.stage=" + stage}), reference);
      expect_same_metrics("1" + tied, stage + tied);
    }
  }
}

TEST_F(Stages, ReducingEachMicroBatchEndWithTheSameBitsWithRanksThatHaveNone) {
  // 5 micro-batches: on 3 ranks the last round has two.
  const std::vector<std::string> each = {"train.global_batch=10", "parallelism.reduce=EACH",
                                         "model.recompute=FULL"};
  const std::string reference = trained("1", 3, each);
  for (const std::string stage : {"0", "2", "3"}) {
    std::vector<std::string> settings = each;
    settings.push_back("parallelism.stage=" + stage);
    EXPECT_EQ(trained(stage, 3, settings), reference) << stage;
    expect_same_metrics("1", stage);
  }
}

TEST_F(Stages, OfAnFp32ModelEndWithTheSameBits) {
  const std::vector<std::string> fp32 = {"model.dtype=FP32", "optimizer.state=FP32"};
  const std::string reference = trained("1", 2, fp32);
  std::vector<std::string> settings = fp32;
  settings.push_back("parallelism.stage=3");
  settings.push_back("parallelism.reduce=EACH");
  // Local sums of two micro-batches and sums over rounds differ in their order alone.
  trained("3", 2, settings);
  const double expected = metrics("1").back()["validation_loss"];
  EXPECT_NEAR(metrics("3").back()["validation_loss"].get<double>(), expected, 1e-3 * expected);
  EXPECT_NE(hash("3"), reference);
}

TEST_F(Stages, ResumeAtAnyOtherToTheBitsOfTheRunLeftAlone) {
  const std::string whole = trained("whole", 3);
  const auto step_3 = (folder_ / "whole" / "checkpoints" / "step-00000003").string();
  for (const std::string stage : {"0", "1", "2", "3"}) {
    const std::string name = "to" + stage;
    ASSERT_EQ(run(3, short_config(name, {"parallelism.stage=" + stage}), step_3), ExitCode::kDone);
    EXPECT_EQ(hash(name), whole) << stage;
    const auto own = (folder_ / name / "checkpoints" / "step-00000006").string();
    EXPECT_TRUE(checkpoint::verify(own).findings.empty());
  }
}

TEST_F(Stages, StartFromOthersWeights) {
  trained("source", 3);
  const std::string from = "model.initialize_from=" + (folder_ / "source").string();
  const std::string reference = trained("one", 3, {from});
  EXPECT_EQ(trained("three", 3, {from, "parallelism.stage=3"}), reference);
  EXPECT_EQ(trained("zero", 3, {from, "parallelism.stage=0"}), reference);
}

TEST_F(Stages, ThreeLeavesAModelThatEvaluatesAndWrites) {
  trained("a", 3, {"parallelism.stage=3"});
  trained("b", 3);
  const auto alone = std::move(make_thread_communicators(1).front());
  const auto text_of = [&](const char* name) {
    TrainedModel model((folder_ / name).string(), *alone, TrainedModel::Use::kText);
    const auto tokenizer = model.open_tokenizer();
    GenerationRequest request;
    request.prompt = "and the ";
    request.options.tokens = 20;
    return write_text(model.model(), *tokenizer, request).text;
  };
  EXPECT_EQ(text_of("a"), text_of("b"));
  TrainedModel model((folder_ / "a").string(), *alone, TrainedModel::Use::kBatches);
  const auto dataset = data::TokenDataset::open(folder_ / "data", data::Split::kValidation);
  const Evaluation result = evaluate(*alone, model.model(), dataset, {model.batch(), 32, 0});
  EXPECT_NEAR(result.mean_loss(), metrics("a").back()["validation_loss"].get<double>(), 1e-6);
}

TEST_F(Stages, HoldTheMemoryThatTheFormulasPredict) {
  for (const std::string stage : {"0", "1", "2", "3"}) {
    for (int world_size : {1, 2, 4}) {
      const std::string name = stage + "-" + std::to_string(world_size);
      const std::string batch = "train.global_batch=" + std::to_string(2 * world_size);
      trained(name, world_size, {"parallelism.stage=" + stage, batch});
      std::ifstream file(folder_ / name / "memory.json");
      const auto memory = nlohmann::json::parse(file);
      for (const auto& rank : memory["ranks"]) {
        EXPECT_EQ(rank["tagged"], rank["predicted"]) << name;
      }
    }
  }
}

TEST_F(Stages, ThatWouldKeepWholeSumsAreRefusedOnAllRanks) {
  const Error error = failure(2, short_config("a", {"parallelism.stage=2"}));  // 3 micro-batches
  EXPECT_EQ(error.code(), ExitCode::kUsage);
  EXPECT_THAT(error.what(), HasSubstr("3 micro-batches a step on 2 ranks"));
  EXPECT_THAT(error.what(), HasSubstr("parallelism.reduce EACH"));
}

TEST_F(Stages, DividedInGroupsEndWithTheSameBitsMemoryAndCheckpoints) {
  const std::vector<std::string> batch = {"train.global_batch=16"};  // 8 micro-batches
  for (const auto& [world_size, group, stage] :
       std::vector<std::array<std::string, 3>>{{"4", "2", "1"}, {"8", "4", "3"}, {"8", "2", "2"}}) {
    const int ranks = std::stoi(world_size);
    std::vector<std::string> plain = batch;
    if (ranks < 8) plain.emplace_back("parallelism.reduce=EACH");
    std::vector<std::string> grouped = plain;
    grouped.insert(grouped.end(),
                   {"parallelism.stage=" + stage, "parallelism.shard_group=" + group});
    const std::string name = world_size + "-" + group;
    SCOPED_TRACE(name);
    const std::string reference = trained("plain" + name, ranks, plain);
    EXPECT_EQ(trained(name, ranks, grouped), reference);
    expect_same_metrics("plain" + name, name);
    std::ifstream file(folder_ / name / "memory.json");
    const auto memory = nlohmann::json::parse(file);
    for (const auto& rank : memory["ranks"]) EXPECT_EQ(rank["tagged"], rank["predicted"]);
    // Every row is saved once, as by a run without groups.
    int files = 0;
    const auto saved = folder_ / name / "checkpoints" / "step-00000006";
    EXPECT_TRUE(checkpoint::verify(saved.string()).findings.empty());
    for (const auto& entry : std::filesystem::directory_iterator(saved)) {
      if (entry.path().extension() != ".safetensors") continue;  // manifests hold the settings
      const auto same =
          folder_ / ("plain" + name) / "checkpoints" / "step-00000006" / entry.path().filename();
      EXPECT_TRUE(bytes_of(entry.path()) == bytes_of(same)) << entry.path();
      ++files;
    }
    EXPECT_EQ(files, 2 * ranks);
  }
}

TEST_F(Stages, DividedInGroupsResumeOthersAndAreResumed) {
  const std::vector<std::string> plain = {"train.global_batch=10", "parallelism.reduce=EACH"};
  std::vector<std::string> in_groups = plain;
  in_groups.insert(in_groups.end(), {"parallelism.stage=3", "parallelism.shard_group=2"});
  const std::string whole = trained("whole", 4, plain);
  const auto step_3 = [&](const std::string& name) {
    return (folder_ / name / "checkpoints" / "step-00000003").string();
  };
  ASSERT_EQ(run(4, short_config("to", in_groups), step_3("whole")), ExitCode::kDone);
  EXPECT_EQ(hash("to"), whole);
  EXPECT_EQ(trained("groups", 4, in_groups), whole);
  ASSERT_EQ(run(4, short_config("from", plain), step_3("groups")), ExitCode::kDone);
  EXPECT_EQ(hash("from"), whole);
}

TEST_F(Stages, DividedInGroupsThatDoNotDivideTheRanksAreRefusedOnAllRanks) {
  const Error error =
      failure(3, short_config("a", {"parallelism.stage=2", "parallelism.shard_group=2"}));
  EXPECT_EQ(error.code(), ExitCode::kUsage);
  EXPECT_THAT(error.what(), HasSubstr("parallelism.shard_group that does not divide"));
  EXPECT_THAT(error.what(), HasSubstr("on 3 ranks"));
}

TEST_F(Stages, WithReleaseEndWithTheBitsOfThoseWithoutIt) {
  const std::vector<std::string> previous = {"optimizer.clip_mode=PREVIOUS",
                                             "optimizer.clip_norm=0.5"};
  const std::string reference = trained("1", 3, previous);
  for (const auto& line : metrics("1")) {
    EXPECT_EQ(line["clip_coefficient"].get<double>() < 1, line["step"] > 1);
  }
  for (const std::string stage : {"0", "2", "3"}) {
    std::vector<std::string> settings = previous;
    settings.insert(settings.end(), {"parallelism.stage=" + stage, "parallelism.release=true",
                                     "optimizer.skip_scope=BUCKET"});
    EXPECT_EQ(trained(stage, 3, settings), reference) << stage;
    expect_same_metrics("1", stage);
    EXPECT_EQ(metrics(stage).back()["health"]["skipped_buckets"], 0);
    // The norm that clips the fourth step is in the checkpoint of the third.
    const auto step_3 = (folder_ / stage / "checkpoints" / "step-00000003").string();
    ASSERT_EQ(run(3, short_config("resumed" + stage, settings), step_3), ExitCode::kDone);
    EXPECT_EQ(hash("resumed" + stage), reference) << stage;
    std::ifstream file(folder_ / stage / "memory.json");
    const auto memory = nlohmann::json::parse(file);
    for (const auto& rank : memory["ranks"]) {
      EXPECT_EQ(rank["tagged"], rank["predicted"]);
      EXPECT_EQ(rank["tagged"]["gradients"], 0);
    }
  }
}

TEST_F(Stages, WithReleaseAccumulateAndClipByBuckets) {
  const std::vector<std::string> settings = {
      "train.global_batch=10",    "parallelism.reduce=EACH",    "parallelism.release=true",
      "optimizer.clip_norm=0.01", "optimizer.clip_mode=BUCKET", "optimizer.skip_scope=BUCKET"};
  std::string reference;
  for (const std::string stage : {"0", "2", "3"}) {
    std::vector<std::string> own = settings;
    own.push_back("parallelism.stage=" + stage);
    const std::string result = trained(stage, 2, own);
    if (reference.empty()) reference = result;
    EXPECT_EQ(result, reference) << stage;
    EXPECT_LT(metrics(stage).back()["clip_coefficient"].get<double>(), 1);
  }
}

TEST_F(Stages, AccumulatingInFewerBitsEndWithTheSameBitsNearThoseOfFp32) {
  const std::vector<std::string> each = {"train.global_batch=20", "parallelism.reduce=EACH"};
  trained("fp32", 2, each);
  const double expected = metrics("fp32").back()["validation_loss"];
  std::string reference;
  for (const std::string stage : {"0", "1", "3"}) {
    std::vector<std::string> settings = each;
    settings.insert(settings.end(),
                    {"parallelism.accumulator=BF16_SPLIT", "parallelism.stage=" + stage});
    const std::string result = trained(stage, 2, settings);
    if (reference.empty()) reference = result;
    EXPECT_EQ(result, reference) << stage;
    EXPECT_NEAR(metrics(stage).back()["validation_loss"].get<double>(), expected, 1e-3 * expected);
    std::ifstream file(folder_ / stage / "memory.json");
    const auto memory = nlohmann::json::parse(file);
    for (const auto& rank : memory["ranks"]) {
      EXPECT_EQ(rank["tagged"], rank["predicted"]);
    }
  }
}

TEST_F(Stages, WithGradientsThatGoIntoTheMomentsEndWithTheSameBitsAndHoldNone) {
  const std::vector<std::string> moments = {
      "train.global_batch=20",    "parallelism.reduce=EACH", "parallelism.accumulator=MOMENTS",
      "parallelism.release=true", "optimizer.state=FP32",    "optimizer.skip_scope=BUCKET",
      "optimizer.clip_norm=0"};
  std::string reference;
  for (const std::string stage : {"0", "2", "3"}) {
    std::vector<std::string> settings = moments;
    settings.push_back("parallelism.stage=" + stage);
    const std::string result = trained(stage, 4, settings);  // the last round has two ranks
    if (reference.empty()) reference = result;
    EXPECT_EQ(result, reference) << stage;
    std::ifstream file(folder_ / stage / "memory.json");
    const auto memory = nlohmann::json::parse(file);
    for (const auto& rank : memory["ranks"]) {
      EXPECT_EQ(rank["tagged"], rank["predicted"]);
      EXPECT_EQ(rank["tagged"]["gradients"], 0);
      EXPECT_EQ(rank["tagged"]["accumulator"], 0);
    }
  }
  std::vector<std::string> grouped = moments;
  grouped.insert(grouped.end(), {"parallelism.stage=3", "parallelism.shard_group=2"});
  EXPECT_EQ(trained("groups", 4, grouped), reference);
  EXPECT_LT(metrics("3").back()["loss"], metrics("3").front()["loss"]);
  // A group's tensors in 8 bits are refused like all tensors'.
  for (const std::string set : {"optimizer.state=COMPANDED", "optimizer.rule=LION"}) {
    std::vector<std::string> settings = moments;
    settings.push_back(set);
    EXPECT_THROW(short_config("refused", settings), Error) << set;
  }
}

class Reproducible : public Stages {
 protected:
  static std::vector<std::string> settings(int stage, std::vector<std::string> more = {}) {
    more.insert(more.begin(),
                {"parallelism.reproducible=true", "parallelism.reduce=EACH", "train.micro_batch=1",
                 "train.global_batch=8", "parallelism.stage=" + std::to_string(stage)});
    return more;
  }
};

TEST_F(Reproducible, RunsHaveTheSameBitsOnAnyNumberOfRanks) {
  const std::string reference = trained("1", 1, settings(1));
  for (const auto& [world_size, stage] :
       std::vector<std::pair<int, int>>{{2, 3}, {3, 2}, {4, 0}, {8, 3}, {8, 1}}) {
    const std::string name = std::to_string(world_size) + "-" + std::to_string(stage);
    EXPECT_EQ(trained(name, world_size, settings(stage)), reference) << name;
    expect_same_metrics("1", name);
  }
}

TEST_F(Reproducible, RunsDividedInGroupsHaveTheSameBitsOnAnyNumberOfRanks) {
  const std::string reference = trained("1", 1, settings(1));
  for (const auto& [world_size, group, stage] :
       std::vector<std::array<int, 3>>{{2, 1, 3}, {4, 2, 2}, {8, 4, 3}, {6, 2, 1}}) {
    const std::string name = std::to_string(world_size) + "-" + std::to_string(group);
    const std::string groups = "parallelism.shard_group=" + std::to_string(group);
    EXPECT_EQ(trained(name, world_size, settings(stage, {groups})), reference) << name;
    expect_same_metrics("1", name);
  }
}

TEST_F(Reproducible, RunsThatAreStoppedGoOnOnOtherNumbersOfRanksToTheSameBits) {
  const std::string reference = trained("1", 1, settings(1));
  std::filesystem::create_directories(folder_ / "parts");
  std::ofstream(folder_ / "parts" / "stop") << "";
  ASSERT_EQ(run(4, short_config("parts", settings(3))), ExitCode::kStopped);
  ASSERT_EQ(metrics("parts").size(), 1u);
  std::ofstream(folder_ / "parts" / "stop") << "";
  ASSERT_EQ(run(2, short_config("parts", settings(2))), ExitCode::kStopped);
  ASSERT_EQ(run(3, short_config("parts", settings(0))), ExitCode::kDone);
  EXPECT_EQ(hash("parts"), reference);
  expect_same_metrics("1", "parts");
}

TEST_F(Reproducible, RunsSavedByFourRanksGoOnOnAnyNumberToTheSameBits) {
  const std::string reference = trained("1", 1, settings(1));
  trained("four", 4, settings(3, {"checkpoint.keep_last=2"}));
  const std::string saved = (folder_ / "four" / "checkpoints" / "step-00000003").string();
  for (const auto& [world_size, stage] :
       std::vector<std::pair<int, int>>{{1, 0}, {2, 2}, {3, 3}, {8, 1}}) {
    const std::string name = std::to_string(world_size) + "-resumed";
    ASSERT_EQ(run(world_size, short_config(name, settings(stage)), saved), ExitCode::kDone);
    EXPECT_EQ(hash(name), reference) << name;
    // It went on and did not begin anew, which ends with the same bits.
    ASSERT_FALSE(metrics(name).empty());
    EXPECT_EQ(metrics(name).front()["step"], 4) << name;
  }
}

TEST_F(Reproducible, RunsAreNotResumedWhereTheirBitsWouldChange) {
  trained("a", 2, settings(1, {"train.steps=6"}));
  for (const char* change : {"train.micro_batch=2", "train.global_batch=16", "run.threads=2"}) {
    const Error error = failure(2, short_config("a", settings(1, {change})));
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(),
                HasSubstr(std::string(change).substr(0, std::string(change).find('='))));
    EXPECT_THAT(error.what(), HasSubstr("keeps what decides its bits"));
  }
  const Error error =
      failure(2, short_config("a", settings(1, {"parallelism.reproducible=false"})));
  EXPECT_THAT(error.what(), HasSubstr("parallelism.reproducible"));
}

}  // namespace
}  // namespace flashshard
