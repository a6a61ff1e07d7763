// Whole runs on in-process ranks: world sizes agree, a stopped run goes on to the same bits, bad
// input ends in one clear error.
#include "runtime/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/inspect.h"
#include "runtime/checkpoint/verify.h"
#include "runtime/data/prepare.h"
#include "runtime/engine.h"
#include "runtime/evaluate.h"
#include "runtime/run_checkpoint.h"
#include "runtime/run_folder.h"
#include "runtime/run_reporter.h"
#include "runtime/trained_model.h"
#include "runtime/write_text.h"
#include "tests/optim/ranks.h"
#include "tests/runtime/runs.h"

namespace flashshard {
namespace {

using test::Runs;
using test::text;
using ::testing::HasSubstr;

TEST_F(Runs, LearnAndLeaveEverythingAPersonNeeds) {
  ASSERT_EQ(run(2, config("a")), ExitCode::kDone);
  const auto lines = metrics("a");
  ASSERT_EQ(lines.size(), 20u);
  EXPECT_LT(lines.back()["loss"].get<double>(), 0.7 * lines.front()["loss"].get<double>());
  EXPECT_TRUE(lines[9].contains("validation_loss"));
  EXPECT_TRUE(lines[19].contains("validation_loss"));
  EXPECT_FALSE(lines[10].contains("validation_loss"));
  for (const char* key : {"grad_norm", "clip_coefficient", "learning_rate", "tokens",
                          "tokens_per_second", "step_ms", "health"}) {
    EXPECT_TRUE(lines.back().contains(key)) << key;
  }
  EXPECT_EQ(lines.back()["tokens"], 20 * 8 * 32);
  for (int rank : {0, 1}) {
    EXPECT_EQ(status("a", rank)["state"], "done");
    EXPECT_EQ(status("a", rank)["exit_code"], 0);
    EXPECT_EQ(status("a", rank)["last_step"], 20);
  }
  EXPECT_TRUE(checkpoint::verify((folder_ / "a").string()).findings.empty());
}

TEST_F(Runs, OnOneToFourRanksReachTheSameLossAndDivideTheState) {
  double reference = 0;
  int64_t whole_state = 0;
  for (int world_size : {1, 2, 3, 4}) {
    const std::string name = "n" + std::to_string(world_size);
    ASSERT_EQ(run(world_size, config(name)), ExitCode::kDone);
    const double loss = metrics(name).back()["validation_loss"];
    if (world_size == 1) reference = loss;
    EXPECT_NEAR(loss, reference, 0.01 * reference) << world_size;

    std::ifstream file(folder_ / name / "memory.json");
    const auto memory = nlohmann::json::parse(file);
    int64_t sum = 0;
    for (const auto& rank : memory["ranks"]) {
      int64_t state = 0;
      for (const char* c : {"momentum", "variance", "scales", "correction"}) {
        state += rank["tagged"][c].get<int64_t>();
        EXPECT_EQ(rank["tagged"][c], rank["predicted"][c]);
      }
      sum += state;
    }
    if (world_size == 1) whole_state = sum;
    EXPECT_EQ(sum, whole_state);
  }
}

TEST_F(Runs, EndWithTheSameBitsWhateverIsRecomputedInTheMemoryPredicted) {
  int64_t more = std::numeric_limits<int64_t>::max();
  std::string expected;
  for (const std::string level : {"NONE", "ELEMENTWISE", "FEED_FORWARD", "FULL"}) {
    ASSERT_EQ(run(2, config(level, {"model.layers=4", "model.recompute=" + level})),
              ExitCode::kDone);
    if (expected.empty()) expected = hash(level);
    EXPECT_EQ(hash(level), expected) << level;
    std::ifstream file(folder_ / level / "memory.json");
    const auto rank = nlohmann::json::parse(file)["ranks"][1];
    EXPECT_EQ(rank["predicted"]["activations"], rank["tagged"]["activations"]);
    EXPECT_LT(rank["tagged"]["activations"].get<int64_t>(), more) << level;
    more = rank["tagged"]["activations"].get<int64_t>();
  }
}

TEST_F(Runs, InTheirReferencesFormatsAlsoLearn) {
  for (const auto& formats : std::vector<std::vector<std::string>>{
           {"optimizer.state=FP32", "optimizer.master_weight_bits=32"},
           {"model.dtype=FP32", "optimizer.state=FP32", "optimizer.master_weight_bits=32"},
           {"optimizer.master_weight_bits=0", "optimizer.rounding=NEAREST"},
           {"optimizer.state_format=FLASHOPTIM_V1"},
           {"model.tied_embeddings=false", "schedule.kind=WSD", "optimizer.clip_norm=0"}}) {
    const std::string name = "format" + formats.front();
    ASSERT_EQ(run(2, config(name, formats)), ExitCode::kDone);
    EXPECT_LT(metrics(name).back()["loss"].get<double>(),
              0.7 * metrics(name).front()["loss"].get<double>());
    EXPECT_TRUE(checkpoint::verify((folder_ / name).string()).findings.empty());
  }
}

TEST_F(Runs, OfModelsWithBiasesAndScaledFrequenciesResumeToTheSameBits) {
  const std::vector<std::string> qwen = {"model.qkv_bias=true", "model.rope_scaling=LLAMA3",
                                         "model.rope_original_positions=32",
                                         "model.max_position_embeddings=32"};
  ASSERT_EQ(run(2, config("whole", qwen)), ExitCode::kDone);
  EXPECT_LT(metrics("whole").back()["loss"].get<double>(),
            0.7 * metrics("whole").front()["loss"].get<double>());
  EXPECT_TRUE(checkpoint::verify((folder_ / "whole").string()).findings.empty());
  const auto older = (folder_ / "whole" / "checkpoints" / "step-00000010").string();
  ASSERT_EQ(run(2, config("branch", qwen), older), ExitCode::kDone);
  EXPECT_EQ(hash("branch"), hash("whole"));
}

TEST_F(Runs, WithEveryRuleReachTheSameLossAtAnyWorldSize) {
  for (const auto& rule : std::vector<std::vector<std::string>>{
           {"optimizer.rule=ADAM", "optimizer.state_format=FLASHOPTIM_V1"},
           {"optimizer.rule=LION", "optimizer.learning_rate=1e-3", "optimizer.decouple_lr=true",
            "optimizer.weight_decay=1e-3"},
           {"optimizer.rule=SGD", "optimizer.learning_rate=0.3", "optimizer.nesterov=true",
            "optimizer.weight_decay=1e-4"},
           {"optimizer.rule=SGDW", "optimizer.learning_rate=0.3",
            "optimizer.master_weight_bits=0"}}) {
    SCOPED_TRACE(rule.front());
    std::vector<double> validation;
    for (int world_size : {1, 3}) {
      const std::string name = rule.front() + std::to_string(world_size);
      ASSERT_EQ(run(world_size, config(name, rule)), ExitCode::kDone);
      EXPECT_LT(metrics(name).back()["loss"].get<double>(),
                0.9 * metrics(name).front()["loss"].get<double>());
      EXPECT_TRUE(checkpoint::verify((folder_ / name).string()).findings.empty());
      validation.push_back(metrics(name).back()["validation_loss"].get<double>());
    }
    EXPECT_NEAR(validation[1], validation[0], 0.01 * validation[0]);
  }
}

TEST_F(Runs, RecordOneStepInAFilePerRankAndKeepTheirBits) {
  ASSERT_EQ(run(2, config("plain", {"train.steps=6"})), ExitCode::kDone);
  ASSERT_EQ(run(2, config("profiled", {"train.steps=6", "run.profile=3"})), ExitCode::kDone);
  EXPECT_EQ(hash("profiled"), hash("plain"));
  for (const char* name : {"rank-00000.json", "rank-00001.json"}) {
    std::ifstream file(folder_ / "profiled" / "profile" / name);
    const auto trace = nlohmann::json::parse(file);
    std::map<std::string, int> count;
    for (const auto& event : trace["traceEvents"]) {
      ++count[event["name"]];
      if (event["ph"] != "X") continue;
      EXPECT_GE(event["dur"].get<double>(), 0.0);
      EXPECT_EQ(event["pid"], name[9] - '0');
    }
    const int layers = config("plain").model().layers();
    EXPECT_EQ(count["forward of layer"], layers * count["micro-batch"]) << trace;
    EXPECT_EQ(count["backward of layer"], layers * count["micro-batch"]);
    EXPECT_EQ(count["reduction of the norm"], 1);
    for (const char* operation :
         {"matmul", "attention", "attention_backward", "cross_entropy", "update", "exact_norm",
          "gather of weights of layer", "reduction of gradients of layer"}) {
      EXPECT_GT(count[operation], 0) << operation;
    }
  }
  EXPECT_FALSE(std::filesystem::exists(folder_ / "plain" / "profile"));
}

class Resumed : public Runs, public ::testing::WithParamInterface<int> {};

TEST_P(Resumed, RunEndsWithTheBitsOfTheOneLeftAlone) {
  const int n = GetParam();
  ASSERT_EQ(run(n, config("whole")), ExitCode::kDone);
  // Stopped by the stop file at its first step, and again after more steps: each resume goes on
  // from where it was.
  std::filesystem::create_directories(folder_ / "parts");
  std::ofstream(folder_ / "parts" / "stop") << "";
  ASSERT_EQ(run(n, config("parts")), ExitCode::kStopped);
  EXPECT_EQ(status("parts", 0)["state"], "stopped");
  EXPECT_EQ(status("parts", 0)["exit_code"], 8);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "parts" / "stop"));
  ASSERT_EQ(metrics("parts").size(), 1u);
  ASSERT_EQ(run(n, config("parts")), ExitCode::kDone);
  EXPECT_EQ(hash("parts"), hash("whole"));
  const auto whole = metrics("whole"), parts = metrics("parts");
  ASSERT_EQ(parts.size(), whole.size());
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_EQ(parts[i]["loss"], whole[i]["loss"]) << i;
    EXPECT_EQ(parts[i]["grad_norm"], whole[i]["grad_norm"]) << i;
    EXPECT_EQ(parts[i]["tokens"], whole[i]["tokens"]) << i;
  }
}

TEST_P(Resumed, FromAnOlderCheckpointByItsPathGivesTheSameEnd) {
  const int n = GetParam();
  ASSERT_EQ(run(n, config("whole")), ExitCode::kDone);
  const auto older = (folder_ / "whole" / "checkpoints" / "step-00000010").string();
  ASSERT_EQ(run(n, config("branch"), older), ExitCode::kDone);
  EXPECT_EQ(hash("branch"), hash("whole"));
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, Resumed, ::testing::Values(1, 2, 3));

TEST_F(Runs, GoOnAtAnyNumberOfRanksFromTheSameState) {
  const std::vector<std::string> eight = {"train.micro_batch=1", "checkpoint.every=5"};
  ASSERT_EQ(run(4, config("whole", eight)), ExitCode::kDone);
  const auto older = (folder_ / "whole" / "checkpoints" / "step-00000010").string();
  const double loss = metrics("whole").back()["validation_loss"];
  for (const int world_size : {1, 2, 3, 8}) {
    const std::string name = "on" + std::to_string(world_size);
    // Nothing learned in the one step that follows: what is saved then differs in no weight.
    std::vector<std::string> still = eight;
    still.insert(still.end(), {"train.steps=11", "optimizer.learning_rate=1e-30",
                               "schedule.warmup_steps=0", "optimizer.rounding=NEAREST"});
    ASSERT_EQ(run(world_size, config(name, still), older), ExitCode::kDone);
    EXPECT_EQ(checkpoint::inspect((folder_ / name).string()).world_size, world_size);
    EXPECT_EQ(checkpoint::hash((folder_ / name).string()).of(checkpoint::StateClass::kWeights),
              checkpoint::hash(older).of(checkpoint::StateClass::kWeights))
        << world_size;

    // The data goes on where it was: the rest of the run has the steps, tokens and, but for the
    // order of its sums, the loss of the run left alone.
    ASSERT_EQ(run(world_size, config(name + "rest", eight), older), ExitCode::kDone);
    const auto rest = metrics(name + "rest");
    EXPECT_EQ(rest.front()["step"], 11);
    EXPECT_EQ(rest.back()["tokens"], metrics("whole").back()["tokens"]);
    EXPECT_NEAR(rest.front()["loss"].get<double>(), metrics("whole")[10]["loss"].get<double>(),
                1e-4);
    EXPECT_NEAR(rest.back()["validation_loss"].get<double>(), loss, 0.01 * loss);
  }
}

TEST_F(Runs, ThatAreDoneHaveNothingLeftToDo) {
  ASSERT_EQ(run(1, config("a")), ExitCode::kDone);
  const std::string before = hash("a");
  ASSERT_EQ(run(1, config("a")), ExitCode::kDone);
  EXPECT_EQ(hash("a"), before);
  EXPECT_EQ(metrics("a").size(), 20u);
}

TEST_F(Runs, GoOnToMoreStepsWhenAskedTo) {
  const std::vector<std::string> constant = {"schedule.kind=CONSTANT"};
  ASSERT_EQ(run(2, config("a", {"schedule.kind=CONSTANT", "train.steps=10"})), ExitCode::kDone);
  ASSERT_EQ(run(2, config("a", constant)), ExitCode::kDone);
  ASSERT_EQ(run(2, config("b", constant)), ExitCode::kDone);
  EXPECT_EQ(hash("a"), hash("b"));
}

TEST_F(Runs, KeepAsManyCheckpointsAsAskedFor) {
  ASSERT_EQ(run(2, config("a", {"checkpoint.every=4", "checkpoint.keep_last=2"})), ExitCode::kDone);
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder_ / "a" / "checkpoints")) {
    names.push_back(entry.path().filename().string());
  }
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("step-00000016", "step-00000020", "latest"));
}

TEST_F(Runs, WithoutACheckpointAtTheEndSaveNone) {
  ASSERT_EQ(run(1, config("a", {"checkpoint.every=0", "checkpoint.at_end=false"})),
            ExitCode::kDone);
  EXPECT_EQ(checkpoint::list_complete((folder_ / "a" / "checkpoints").string()).size(), 0u);
}

TEST_F(Runs, EndWithCodeSevenWhenGradientsStayNonFinite) {
  // A checkpoint whose embedding holds a NaN: every gradient from there on is one.
  proto::RunConfig poisoned = config("a", {"optimizer.max_consecutive_skips=2"});
  poisoned.mutable_model()->set_vocab_size(256);
  const auto data = data::TokenDataset::open(folder_ / "data", data::Split::kTrain);
  test::run_ranks(2, [&](Communicator& communicator) {
    Engine engine(communicator, poisoned, 256);
    engine.initialize(1);
    engine.state().weight(0).as<uint16_t>()[communicator.rank() == 0 ? ' ' * 32 : 255 * 32] =
        0x7fc0;
    std::optional<RunFolder> folder;
    RunTicket ticket = {};
    if (communicator.rank() == 0) {
      folder.emplace(RunFolder::create(poisoned.run().dir()));
      ticket = folder->ticket();
    }
    communicator.broadcast(std::as_writable_bytes(std::span(ticket)), 0).wait("the ticket");
    if (communicator.rank() == 1) folder.emplace(RunFolder::join(poisoned.run().dir(), ticket));
    RunReporter reporter(*folder, communicator.rank());
    RunProgress progress;
    progress.step = 1;
    progress.data = data.manifest();
    RunCheckpoint(communicator, *folder, poisoned, engine, reporter).save(progress);
  });
  const std::string before = hash("a");
  const Error error = failure(2, poisoned);
  EXPECT_EQ(error.code(), ExitCode::kNonFinite);
  EXPECT_THAT(error.what(), HasSubstr("2 steps in a row"));
  EXPECT_EQ(status("a", 1)["state"], "failed");
  EXPECT_EQ(status("a", 1)["exit_code"], 7);
  ASSERT_EQ(metrics("a").size(), 2u);
  EXPECT_EQ(metrics("a")[1]["skipped_steps"], 2);
  EXPECT_EQ(metrics("a")[1]["nonfinite"], 1);
  EXPECT_EQ(metrics("a")[1]["grad_norm"], "inf");
  EXPECT_EQ(hash("a"), before);  // nothing was saved over it
}

TEST_F(Runs, RefuseWhatAResumeCannotChange) {
  ASSERT_EQ(run(2, config("a")), ExitCode::kDone);
  struct Case {
    std::string override;
    std::string named;
  };
  for (const Case& c : {Case{"run.seed=7", "run.seed"}, Case{"model.layers=3", "model.layers"},
                        Case{"optimizer.state=FP32", "optimizer.state"},
                        Case{"train.sequence_length=16", "train.sequence_length"}}) {
    const Error error = failure(2, config("a", {c.override}));
    EXPECT_THAT(error.what(), HasSubstr(c.named));
    EXPECT_EQ(error.code(),
              c.named.starts_with("model.") ? ExitCode::kCheckpoint : ExitCode::kUsage)
        << c.override;
  }
  EXPECT_EQ(failure(2, config("a"), "never").code(), ExitCode::kUsage);
  EXPECT_EQ(failure(2, config("a", {"train.steps=10", "schedule.warmup_steps=2"})).code(),
            ExitCode::kUsage);
}

TEST_F(Runs, RefuseOtherDataAtAResume) {
  ASSERT_EQ(run(1, config("a")), ExitCode::kDone);
  std::ofstream(folder_ / "text.txt") << text(50000);
  data::PrepareOptions options;
  options.inputs = {folder_ / "text.txt"};
  options.output = folder_ / "data";
  data::prepare(options);
  const Error error = failure(1, config("a"));
  EXPECT_EQ(error.code(), ExitCode::kBadData);
  EXPECT_THAT(error.what(), HasSubstr("other data"));
}

TEST_F(Runs, RefuseBadInputBeforeTheFirstStep) {
  EXPECT_EQ(failure(2, config("a", {"data.path=/nonexistent"})).code(), ExitCode::kBadData);
  EXPECT_EQ(failure(2, config("b", {"train.sequence_length=60000"})).code(), ExitCode::kBadData);
  EXPECT_EQ(failure(2, config("c", {"model.vocab_size=100"})).code(), ExitCode::kUsage);
  EXPECT_EQ(failure(3, config("d", {"train.global_batch=2"})).code(),
            ExitCode::kUsage);  // one micro-batch, three ranks
  EXPECT_EQ(failure(1, config("e"), "/nonexistent").code(), ExitCode::kUsage);
}

TEST_F(Runs, EndAloneWhenADamagedCheckpointIsResumed) {
  ASSERT_EQ(run(2, config("a")), ExitCode::kDone);
  const auto file = folder_ / "a" / "checkpoints" / "step-00000020" / "weights-00001.safetensors";
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(-5, std::ios::end);
  stream.put('x');
  stream.close();
  const Error error = failure(2, config("a", {"train.steps=30"}));
  EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
  EXPECT_THAT(error.what(), HasSubstr("weights-00001.safetensors"));
}

TEST_F(Runs, GiveAModelThatEvaluatesAndWrites) {
  ASSERT_EQ(run(2, config("a", {"train.steps=60", "optimizer.learning_rate=2e-2"})),
            ExitCode::kDone);
  const double trained_loss = metrics("a").back()["validation_loss"];
  for (int world_size : {1, 3}) {
    test::run_ranks(world_size, [&](Communicator& communicator) {
      TrainedModel model((folder_ / "a").string(), communicator, TrainedModel::Use::kBatches);
      const auto dataset = data::TokenDataset::open(folder_ / "data", data::Split::kValidation);
      const Evaluation result =
          evaluate(communicator, model.model(), dataset, {model.batch(), 32, 0});
      EXPECT_NEAR(result.mean_loss(), trained_loss, 1e-6);
      EXPECT_EQ(result.tokens, dataset.token_count() - 1);
      EXPECT_NEAR(std::log(result.perplexity()), result.mean_loss(), 1e-12);
      EXPECT_NEAR(std::exp2(result.bits_per_token()), result.perplexity(), 1e-9);
      EXPECT_EQ(result.bits_per_byte(2), result.bits_per_token() / 2);
      EXPECT_THROW(model.require_vocabulary(257), Error);
    });
  }
  const auto alone = std::move(make_thread_communicators(1).front());
  TrainedModel model((folder_ / "a").string(), *alone, TrainedModel::Use::kText);
  const auto tokenizer = model.open_tokenizer();
  GenerationRequest request;
  request.prompt = "and the ";
  request.options.tokens = 60;
  request.options.sampling.temperature = 0;
  std::string seen;
  const WrittenText written =
      write_text(model.model(), *tokenizer, request, [&](std::string_view text) { seen += text; });
  EXPECT_EQ(written.text, request.prompt + seen);
  EXPECT_EQ(written.text.size(), 68u);
  EXPECT_FALSE(written.ended);
  EXPECT_EQ(written.text, write_text(model.model(), *tokenizer, request).text);
  request.prompt.clear();
  EXPECT_THROW(write_text(model.model(), *tokenizer, request), Error);
}

}  // namespace
}  // namespace flashshard
