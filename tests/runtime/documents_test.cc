// Runs over documents: fine-tuning on pairs, tokenizers, other programs' shards, and what of them
// is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "runtime/data/token_dataset.h"
#include "runtime/evaluate.h"
#include "runtime/trained_model.h"
#include "runtime/write_text.h"
#include "tests/runtime/runs.h"

namespace flashshard {
namespace {

using ::testing::HasSubstr;

/// Documents of one answer each: a model that has learned them ends by itself.
class Documents : public test::Runs {
 protected:
  data::PrepareReport prepare_pairs(const std::string& name, const std::string& tokenizer) {
    std::ofstream file(folder_ / "pairs.jsonl");
    for (int i = 0; i < 400; ++i) {
      file << R"({"prompt": "go ", "response": "out."})"
           << "\n";
    }
    file.close();
    data::PrepareOptions options;
    options.inputs = {folder_ / "pairs.jsonl"};
    options.output = folder_ / name;
    options.tokenizer = tokenizer;
    options.jsonl_fields = {"prompt", "response"};
    return data::prepare(options);
  }
  proto::RunConfig on(const std::string& run, const std::string& data,
                      std::vector<std::string> overrides = {}) const {
    overrides.push_back("data.path=" + (folder_ / data).string());
    return config(run, overrides);
  }
  WrittenText write(const std::string& run, const std::string& prompt) const {
    const auto alone = std::move(make_thread_communicators(1).front());
    TrainedModel model((folder_ / run).string(), *alone, TrainedModel::Use::kText);
    GenerationRequest request;
    request.prompt = prompt;
    request.options.tokens = 30;
    request.options.sampling.temperature = 0;
    return write_text(model.model(), *model.open_tokenizer(), request);
  }
};

const std::string kSentencePiece =
    "sentencepiece:" FLASHSHARD_TEST_DATA "/runtime/data/golden/tokenizer.model";

TEST_F(Documents, FineTuneAModelFromACheckpointWithFreshState) {
  ASSERT_EQ(run(2, config("a")), ExitCode::kDone);
  prepare_pairs("pairs", "byte");
  const std::string from = "model.initialize_from=" + (folder_ / "a").string();
  // Nothing learned: the weights are the checkpoint's, whatever the number of ranks.
  ASSERT_EQ(run(3, on("same", "data",
                      {from, "train.steps=5", "optimizer.learning_rate=1e-30",
                       "optimizer.rounding=NEAREST"})),
            ExitCode::kDone);
  EXPECT_NEAR(metrics("same").back()["validation_loss"].get<double>(),
              metrics("a").back()["validation_loss"].get<double>(), 1e-6);
  ASSERT_EQ(run(2, on("tuned", "pairs", {from, "train.steps=60"})), ExitCode::kDone);
  const auto lines = metrics("tuned");
  EXPECT_LT(lines.back()["loss"].get<double>(), 0.5 * lines.front()["loss"].get<double>());
  // Of each pair of 8 tokens, 5 count.
  EXPECT_NEAR(lines.front()["tokens"].get<double>(), 8 * 32 * 5.0 / 8, 8);
  const WrittenText written = write("tuned", "go ");
  EXPECT_EQ(written.text, "go out.");
  EXPECT_TRUE(written.ended);
}

TEST_F(Documents, ThroughATokenizerAreWrittenAfterTheDataIsGone) {
  prepare_pairs("pairs", kSentencePiece);
  ASSERT_EQ(run(2, on("a", "pairs", {"train.steps=60"})), ExitCode::kDone);
  std::filesystem::remove_all(folder_ / "pairs");
  for (const char* checkpoint :
       {"a", "a/checkpoints/step-00000060", "a/checkpoints/step-00000060//"}) {
    const WrittenText written = write(checkpoint, "go ");
    EXPECT_THAT(written.text, HasSubstr("out."));
    EXPECT_TRUE(written.ended);
  }
}

TEST_F(Documents, OfAnotherTokenizerAreRefusedEverywhere) {
  ASSERT_EQ(run(1, config("a", {"model.vocab_size=340"})), ExitCode::kDone);
  prepare_pairs("pairs", kSentencePiece);
  const auto refused = [](const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(),
                HasSubstr("the checkpoint's tokens are those of the tokenizer `byte"));
    EXPECT_THAT(error.what(), HasSubstr("`sentencepiece "));
  };
  refused(failure(2, on("a", "pairs", {"model.vocab_size=340", "train.steps=30"})));
  refused(failure(2, on("b", "pairs", {"model.initialize_from=" + (folder_ / "a").string()})));
  const auto alone = std::move(make_thread_communicators(1).front());
  const TrainedModel model((folder_ / "a").string(), *alone, TrainedModel::Use::kBatches);
  try {
    model.require_tokenizer(data::read_manifest(folder_ / "pairs"));
    ADD_FAILURE() << "nothing thrown";
  } catch (const Error& error) {
    refused(error);
  }
  const Error too_small = failure(2, on("c", "pairs", {"model.vocab_size=256"}));
  EXPECT_EQ(too_small.code(), ExitCode::kUsage);
  EXPECT_THAT(too_small.what(), HasSubstr("vocabulary of 340 tokens does not fit the model's 256"));
}

TEST_F(Documents, StartFromAModelOfTheSameShapeOnly) {
  ASSERT_EQ(run(1, config("a")), ExitCode::kDone);
  const std::string from = "model.initialize_from=" + (folder_ / "a").string();
  const Error error = failure(2, config("b", {from, "model.feed_forward_size=96"}));
  EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
  const Error heads =
      failure(2, config("d", {from, "model.heads=4", "model.kv_heads=2", "model.head_dim=8"}));
  EXPECT_EQ(heads.code(), ExitCode::kCheckpoint) << "every tensor has the same shape";
  EXPECT_THAT(heads.what(), HasSubstr("another model.heads than this run's"));
  ASSERT_EQ(run(1, config("e", {from, "model.rope_theta=500000", "train.steps=5"})),
            ExitCode::kDone);
  std::ifstream log(folder_ / "e" / "logs" / "rank-00000.log");
  const std::string logged((std::istreambuf_iterator<char>(log)), {});
  EXPECT_THAT(logged, HasSubstr("model.rope_theta was 10000 in "));
  const Error nowhere = failure(2, config("c", {"model.initialize_from=nowhere"}));
  EXPECT_EQ(nowhere.code(), ExitCode::kUsage);
}

TEST_F(Documents, OfOtherProgramsNeedAVocabularyThatHoldsTheirIds) {
  std::string bytes(1024, '\0');
  const std::array<int32_t, 3> header = {20240520, 1, 4000};
  std::memcpy(bytes.data(), header.data(), sizeof(header));
  for (int i = 0; i < header[2]; ++i) bytes += {static_cast<char>(i % 50), '\1'};
  std::ofstream(folder_ / "a.bin", std::ios::binary) << bytes;
  const Error unset = failure(2, on("a", "a.bin"));
  EXPECT_EQ(unset.code(), ExitCode::kUsage);
  EXPECT_THAT(unset.what(), HasSubstr("their largest id is 305"));
  const Error small = failure(2, on("b", "a.bin", {"model.vocab_size=305"}));
  EXPECT_EQ(small.code(), ExitCode::kBadData);
  EXPECT_THAT(small.what(), HasSubstr("ids up to 305 do not fit the model's vocabulary of 305"));
  EXPECT_EQ(run(2, on("c", "a.bin", {"model.vocab_size=306"})), ExitCode::kDone);
  ASSERT_EQ(run(1, config("d")), ExitCode::kDone);
  const auto alone = std::move(make_thread_communicators(1).front());
  const TrainedModel model((folder_ / "d").string(), *alone, TrainedModel::Use::kBatches);
  try {
    model.require_tokenizer(data::TokenDataset::open_for_evaluation(folder_ / "a.bin").manifest());
    ADD_FAILURE() << "nothing thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_THAT(error.what(), HasSubstr("vocabulary of 306 tokens does not fit the model's 256"));
  }
}

TEST_F(Documents, KeptApartInTrainingAreKeptApartInValidationAndEvaluation) {
  prepare_pairs("pairs", "byte");
  const std::string apart = "train.attention=DOCUMENT";
  ASSERT_EQ(run(2, on("a", "pairs", {apart, "train.steps=20"})), ExitCode::kDone);
  const auto alone = std::move(make_thread_communicators(1).front());
  TrainedModel model((folder_ / "a").string(), *alone, TrainedModel::Use::kBatches);
  EXPECT_EQ(model.attention(), AttentionScope::kDocument);
  const auto dataset = data::TokenDataset::open_for_evaluation(folder_ / "pairs");
  const EvaluationRequest request{model.batch(), 32, 0, model.attention()};
  const double validation_loss = metrics("a").back()["validation_loss"];
  EXPECT_NEAR(evaluate(*alone, model.model(), dataset, request).mean_loss(), validation_loss, 1e-6);
  EvaluationRequest together = request;
  together.attention = AttentionScope::kSequence;
  EXPECT_NE(evaluate(*alone, model.model(), dataset, together).mean_loss(), validation_loss);
  const WrittenText written = write("a", "go ");
  EXPECT_GT(written.text.size(), 0U);
  std::ifstream memory(folder_ / "a" / "memory.json");
  const auto rank = nlohmann::json::parse(memory)["ranks"][1];
  EXPECT_EQ(rank["predicted"]["activations"], rank["tagged"]["activations"]);

  const Error changed = failure(2, on("a", "pairs", {"train.steps=25"}));
  EXPECT_EQ(changed.code(), ExitCode::kUsage);
  EXPECT_THAT(changed.what(), HasSubstr("train.attention"));
}

TEST_F(Documents, ThatTheDataDoesNotTellApartCannotBeKeptApart) {
  std::string bytes(1024, '\0');
  const std::array<int32_t, 3> header = {20240520, 1, 4000};
  std::memcpy(bytes.data(), header.data(), sizeof(header));
  for (int i = 0; i < header[2]; ++i) bytes += {static_cast<char>(i % 50), '\0'};
  std::ofstream(folder_ / "a.bin", std::ios::binary) << bytes;
  const Error error =
      failure(2, on("a", "a.bin", {"model.vocab_size=60000", "train.attention=DOCUMENT"}));
  EXPECT_EQ(error.code(), ExitCode::kBadData);
  EXPECT_THAT(error.what(), HasSubstr("does not tell where a document ends"));
}

TEST_F(Documents, WithoutACountedTokenEndTheRunAsBadData) {
  std::ofstream file(folder_ / "long.jsonl");
  const std::string prompt(20000, 'x');
  for (int i = 0; i < 4; ++i) {
    file << R"({"prompt": ")" << prompt << R"(", "response": "y"})"
         << "\n";
  }
  file.close();
  data::PrepareOptions options;
  options.inputs = {folder_ / "long.jsonl"};
  options.output = folder_ / "long";
  options.jsonl_fields = {"prompt", "response"};
  options.validation_fraction = 0.3;
  data::prepare(options);
  const Error error = failure(
      2, on("a", "long", {"optimizer.max_consecutive_skips=3", "train.validation_sequences=1"}));
  EXPECT_EQ(error.code(), ExitCode::kBadData);
  EXPECT_THAT(error.what(), HasSubstr("3 steps in a row had nothing to learn"));
}

}  // namespace
}  // namespace flashshard
