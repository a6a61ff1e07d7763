// What a generated text depends on: the prompt's end, then every token once, and the rule for a
// context that is full.
#include "runtime/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "runtime/data/tokenizer.h"
#include "runtime/write_text.h"

namespace flashshard {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

/// Its likeliest next token is the number of tokens it remembers, so a text tells what was read.
class CountingModel final : public Model {
 public:
  explicit CountingModel(int64_t positions, int64_t vocabulary = 256)
      : positions_(positions), vocabulary_(vocabulary) {}

  const std::vector<ParameterSpec>& parameters() const override { return parameters_; }
  Initialization initialization(int) const override { return {}; }
  int64_t vocabulary_size() const override { return vocabulary_; }
  int64_t maximum_sequence_length() const override { return positions_; }
  double flops_per_token(int64_t) const override { return 0; }
  void bind(std::span<const Tensor>, std::span<const Tensor>) override {}
  LossResult forward_backward(const MicroBatchView&, const LayerHooks&, bool) override {
    return {};
  }
  LossResult evaluate(const MicroBatchView&, const LayerHooks&) override { return {}; }

  std::vector<float> next_token_logits(std::span<const int32_t> tokens) override {
    remembered_.assign(tokens.begin(), tokens.end());
    whole_reads_.push_back(static_cast<int64_t>(tokens.size()));
    return logits();
  }
  std::vector<float> continue_with(int32_t token) override {
    EXPECT_FALSE(remembered_.empty());
    EXPECT_LT(remembered_tokens(), positions_);
    remembered_.push_back(token);
    return logits();
  }
  int64_t remembered_tokens() const override { return static_cast<int64_t>(remembered_.size()); }

  const std::vector<int32_t>& remembered() const { return remembered_; }
  /// Sizes of the texts that were read anew.
  const std::vector<int64_t>& whole_reads() const { return whole_reads_; }

 private:
  std::vector<float> logits() const {
    std::vector<float> scores(static_cast<size_t>(vocabulary_), 0.0f);
    scores[remembered_.size()] = 1;
    return scores;
  }

  std::vector<ParameterSpec> parameters_;
  int64_t positions_, vocabulary_;
  std::vector<int32_t> remembered_;
  std::vector<int64_t> whole_reads_;
};

GenerationOptions likeliest(int64_t tokens) {
  GenerationOptions options;
  options.tokens = tokens;
  options.sampling.temperature = 0;
  return options;
}

std::vector<int32_t> numbers(int64_t count) {
  std::vector<int32_t> text(static_cast<size_t>(count));
  std::iota(text.begin(), text.end(), 100);
  return text;
}

TEST(ExtendText, ReadsThePromptAtOnceAndEveryFurtherTokenOnce) {
  CountingModel model(20);
  std::vector<int32_t> text = numbers(3);
  std::vector<int32_t> seen;
  const GenerationTimes times =
      extend_text(model, text, likeliest(4), [&](int32_t token) { seen.push_back(token); });
  EXPECT_THAT(text, ElementsAre(100, 101, 102, 3, 4, 5, 6));
  EXPECT_THAT(seen, ElementsAre(3, 4, 5, 6));
  EXPECT_THAT(model.whole_reads(), ElementsAre(3));
  EXPECT_EQ(times.tokens, 3);
  EXPECT_GE(times.seconds, 0);
}

TEST(ExtendText, SeesTheEndOfAPromptLongerThanTheModelsPositions) {
  CountingModel model(6);
  std::vector<int32_t> text = numbers(10);
  extend_text(model, text, likeliest(1));
  EXPECT_THAT(model.remembered(), ElementsAre(104, 105, 106, 107, 108, 109));
}

TEST(ExtendText, ForgetsTheOlderHalfWhenTheContextIsFull) {
  CountingModel model(6);
  std::vector<int32_t> text = numbers(5);
  extend_text(model, text, likeliest(7));
  // Six tokens fill the model; then the latest three are read anew, and again.
  EXPECT_THAT(text, ElementsAre(100, 101, 102, 103, 104, 5, 6, 3, 4, 5, 6, 3));
  EXPECT_THAT(model.whole_reads(), ElementsAre(5, 3, 3));
  EXPECT_THAT(model.remembered(), ElementsAre(4, 5, 6));
}

TEST(ExtendText, WorksWithASinglePosition) {
  CountingModel model(1);
  std::vector<int32_t> text = numbers(2);
  extend_text(model, text, likeliest(3));
  EXPECT_THAT(text, ElementsAre(100, 101, 1, 1, 1));
  EXPECT_THAT(model.whole_reads(), ElementsAre(1, 1, 1));
}

TEST(ExtendText, StartsAnewWithEveryText) {
  CountingModel model(20);
  std::vector<int32_t> first = numbers(9), second = numbers(2);
  extend_text(model, first, likeliest(3));
  extend_text(model, second, likeliest(2));
  EXPECT_THAT(second, ElementsAre(100, 101, 2, 3));
}

TEST(ExtendText, AddsNothingWhenNothingIsAskedFor) {
  CountingModel model(20);
  std::vector<int32_t> text = numbers(4);
  const GenerationTimes times = extend_text(model, text, likeliest(0));
  EXPECT_EQ(text, numbers(4));
  EXPECT_EQ(times.tokens, 0);
  EXPECT_EQ(GenerationTimes().tokens_per_second(), 0);
}

TEST(ExtendText, StopsAfterTheTokenThatEnds) {
  CountingModel model(20);
  std::vector<int32_t> text = numbers(2);
  GenerationOptions options = likeliest(9);
  options.end_token = 4;
  EXPECT_EQ(extend_text(model, text, options).tokens, 2);
  EXPECT_THAT(text, ElementsAre(100, 101, 2, 3, 4));
}

TEST(ExtendText, ChoosesNoTokenBeyondTheVocabularyAskedFor) {
  CountingModel model(20);
  std::vector<int32_t> text = numbers(2);
  GenerationOptions options = likeliest(3);
  options.vocabulary = 4;
  extend_text(model, text, options);
  EXPECT_THAT(text, ElementsAre(100, 101, 2, 3, 0));  // 4 is the likeliest, but not allowed
}

TEST(WriteText, TakesBytesAndGivesBytes) {
  CountingModel model(300);
  data::ByteTokenizer bytes;
  const GenerationRequest request{std::string(200, '\xff'), likeliest(2)};
  std::string seen;
  const WrittenText result =
      write_text(model, bytes, request, [&](std::string_view text) { seen += text; });
  EXPECT_EQ(seen, "\xc8\xc9");  // 200 and 201
  EXPECT_EQ(result.text, request.prompt + seen);
  EXPECT_FALSE(result.ended);
  EXPECT_EQ(model.remembered().front(), 255);
}

TEST(WriteText, RefusesAnEmptyPromptAndAModelOfTooFewTokens) {
  CountingModel bytes(20), fewer(20, 200);
  const auto code = [](Model& model, const std::string& prompt) {
    data::ByteTokenizer tokenizer;
    try {
      write_text(model, tokenizer, {prompt, likeliest(1)});
    } catch (const Error& error) {
      return error.code();
    }
    return ExitCode::kDone;
  };
  EXPECT_EQ(code(bytes, ""), ExitCode::kUsage);
  EXPECT_EQ(code(fewer, "x"), ExitCode::kUsage);
  EXPECT_THAT(fewer.whole_reads(), IsEmpty());
}

}  // namespace
}  // namespace flashshard
