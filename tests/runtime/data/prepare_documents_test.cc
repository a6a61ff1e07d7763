// `prepare` turns documents into tokens that end with the end-of-document token, holds whole
// documents or lines out, and masks prompts.
#include <array>
#include <filesystem>

#include "runtime/data/prepare.h"
#include "runtime/data/sequence_sampler.h"
#include "runtime/data/token_dataset.h"
#include "runtime/data/validation_windows.h"
#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

using testing::AllOf;
using testing::Ge;
using testing::HasSubstr;
using testing::Le;
using testing::StartsWith;

const std::string kSentencePiece =
    "sentencepiece:" FLASHSHARD_TEST_DATA "/runtime/data/golden/tokenizer.model";

// Tokens of a split as text: an uncounted one as '_', an end of a document as '|'.
std::string shown(const std::filesystem::path& folder, Split split) {
  const auto dataset = TokenDataset::open(folder, split);
  const auto count = static_cast<size_t>(dataset.token_count());
  std::vector<int32_t> inputs(count - 1), targets(count - 1), first(1);
  dataset.read_window(0, {inputs, targets});
  std::string text(1, static_cast<char>(inputs.front()));
  for (const int32_t token : targets) {
    text += token == -1 ? '_' : token == 0 ? '|' : static_cast<char>(token);
  }
  return text;
}

class Documents : public testing::Test {
 protected:
  PrepareReport prepare_text(const std::string& text, std::vector<std::string> fields,
                             double fraction = 0, const std::string& tokenizer = "byte") {
    write_file(folder_ / "in", text);
    return prepare({.inputs = {folder_ / "in"},
                    .output = folder_ / "out",
                    .tokenizer = tokenizer,
                    .jsonl_fields = std::move(fields),
                    .validation_fraction = fraction,
                    .progress = {}});
  }
  std::string error(const std::string& text, std::vector<std::string> fields, double fraction = 0,
                    const std::string& tokenizer = "byte") {
    return error_of([&] { prepare_text(text, std::move(fields), fraction, tokenizer); });
  }

  DataFolder folder_;
};

TEST_F(Documents, OfOneFieldCountWhole) {
  const auto report =
      prepare_text("{\"text\": \"one\", \"id\": 3}\n\n{\"text\": \"two\"}", {"text"});
  EXPECT_EQ(shown(folder_ / "out", Split::kTrain), "one|two|");
  EXPECT_EQ(report.train_totals, (SplitTotals{.documents = 2, .text_bytes = 6, .counted = 8}));
  EXPECT_FALSE(read_manifest(folder_ / "out").loss_mask);
}

TEST_F(Documents, OfPromptAndResponseCountInTheResponseAndTheEnd) {
  const auto report = prepare_text(
      "{\"response\": \"yes\", \"prompt\": \"a?\"}\r\n{\"prompt\": \"\", \"response\": \"no\"}\n",
      {"prompt", "response"});
  EXPECT_EQ(shown(folder_ / "out", Split::kTrain), "a_yes|no|");
  EXPECT_EQ(report.train_totals, (SplitTotals{.documents = 2, .text_bytes = 5, .counted = 7}));
}

TEST_F(Documents, MaskReachesTrainingSequencesAndValidation) {
  std::string text;
  for (int i = 0; i < 40; ++i) text += "{\"p\": \"ABCDEFG\", \"r\": \"xyz\"}\n";
  prepare_text(text, {"p", "r"}, 0.25);
  const auto train = TokenDataset::open(folder_ / "out", Split::kTrain);
  const SequenceSampler sampler(train, {.seed = 1, .sequence_length = 20});
  std::vector<int32_t> inputs(40), targets(40);
  sampler.fill(0, 2, {inputs, targets});
  for (size_t i = 0; i < targets.size(); ++i) {
    const bool last = i % 20 == 19;
    const bool counted = targets[i] != -1;
    if (counted) {
      EXPECT_THAT(targets[i], testing::AnyOf(0, AllOf(Ge('x'), Le('z'))));
    }
    if (last) continue;
    EXPECT_THAT(inputs[i + 1], counted ? testing::Matcher<int32_t>(targets[i])
                                       : testing::Matcher<int32_t>(AllOf(Ge('A'), Le('G'))));
  }
  const auto validation = TokenDataset::open(folder_ / "out", Split::kValidation);
  EXPECT_EQ(validation.token_count(), 10 * 11);
  const ValidationWindows windows(validation, {.sequence_length = 20});
  std::vector<int32_t> all(20 * static_cast<size_t>(windows.size()));
  EXPECT_EQ(windows.fill(0, windows.size(), {all, all}), 10 * 4);
}

TEST_F(Documents, AreHeldOutWholeAndByTheRuleOfBlocks) {
  std::string text;
  for (char c = 'a'; c < 'k'; ++c) text += std::string("{\"t\": \"") + c + c + "\"}\n";
  prepare_text(text, {"t"}, 0.2);
  EXPECT_EQ(shown(folder_ / "out", Split::kValidation), "cc|hh|");
  EXPECT_EQ(shown(folder_ / "out", Split::kTrain), "aa|bb|dd|ee|ff|gg|ii|jj|");
}

TEST_F(Documents, GoThroughATokenizer) {
  const auto tokenizer = make_tokenizer(kSentencePiece);
  const std::array<std::string_view, 3> texts = {"God said", " light", "day"};
  const auto ids = tokenizer->encode(texts);
  const auto report =
      prepare_text("{\"p\": \"God said\", \"r\": \" light\"}\n{\"p\": \"\", \"r\": \"day\"}",
                   {"p", "r"}, 0, kSentencePiece);
  std::vector<int32_t> expected = ids[0];
  expected.insert(expected.end(), ids[1].begin(), ids[1].end());
  expected.push_back(2);
  expected.insert(expected.end(), ids[2].begin(), ids[2].end());
  expected.push_back(2);
  const auto dataset = TokenDataset::open(folder_ / "out", Split::kTrain);
  std::vector<int32_t> tokens(static_cast<size_t>(dataset.token_count()));
  dataset.read(0, tokens);
  EXPECT_EQ(tokens, expected);
  EXPECT_EQ(dataset.manifest().token_bytes, 2u);
  EXPECT_EQ(dataset.manifest().identity(), tokenizer->identity());
  EXPECT_EQ(report.tokenizer, tokenizer->identity());
  EXPECT_EQ(read_file(folder_ / "out/tokenizer.model"),
            read_file(FLASHSHARD_TEST_DATA "/runtime/data/golden/tokenizer.model"));
  EXPECT_EQ(open_tokenizer(dataset.manifest().identity(), folder_ / "out")->identity(),
            tokenizer->identity());
}

TEST_F(Documents, OfATextKeepEveryLineInOneSplit) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "let there be light in day " + std::to_string(i) + "\n";
  const auto report = prepare_text(text, {}, 0.1, kSentencePiece);
  EXPECT_EQ(report.train_totals.text_bytes + report.validation_totals.text_bytes, std::ssize(text));
  EXPECT_EQ(report.train_totals.documents + report.validation_totals.documents, 1);
  EXPECT_NEAR(static_cast<double>(report.validation_totals.text_bytes),
              0.1 * static_cast<double>(text.size()), 1024);
  const auto tokenizer = make_tokenizer(kSentencePiece);
  for (const Split split : {Split::kTrain, Split::kValidation}) {
    const auto dataset = TokenDataset::open(folder_ / "out", split);
    std::vector<int32_t> tokens(static_cast<size_t>(dataset.token_count()));
    dataset.read(0, tokens);
    const std::string decoded = tokenizer->decode(tokens);
    EXPECT_EQ(std::ranges::count(decoded, '\n'), std::ranges::count(decoded, 'g')) << "torn lines";
  }
}

TEST_F(Documents, AnotherTokenizerLeavesNoFileOfTheLastOne) {
  prepare_text("let there be light\n", {}, 0, kSentencePiece);
  EXPECT_EQ(names_in(folder_ / "out"),
            (std::vector<std::string>{"dataset.json", "tokenizer.model", "train-00000.tokens"}));
  prepare_text("let there be light\n", {});
  EXPECT_EQ(names_in(folder_ / "out"),
            (std::vector<std::string>{"dataset.json", "train-00000.tokens"}));
}

TEST_F(Documents, SomebodyElsesTokenizerFileIsLeftAlone) {
  std::filesystem::create_directory(folder_ / "out");
  write_file(folder_ / "out/tokenizer.model", "mine");
  EXPECT_THAT(error("text", {}), StartsWith("2: output folder holds `tokenizer.model`"));
  EXPECT_EQ(read_file(folder_ / "out/tokenizer.model"), "mine");
}

TEST_F(Documents, MalformedLinesAreNamed) {
  const std::string good = "{\"p\": \"a\", \"r\": \"b\"}\n";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{\"p\": \"a\", \"r\": }", "is not JSON at byte "},
      {"{\"p\": \"a\", \"r\": \"\xff\"}", "is not JSON at byte "},
      {"{\"p\": \"a\"", "is not JSON at byte "},
      {"{\"p\": \"a\", \"r\": 1e999}", "holds a number that is out of range"},
      {"[1]", "is not a JSON object"},
      {"{\"p\": \"a\"}", "has no field `r`"},
      {"{\"p\": 3, \"r\": \"b\"}", "field `p` is not text"},
      {"{\"p\": \"a\", \"r\": \"\"}", "field `r` is empty"},
      {"{\"p\": \"a\\u0000\", \"r\": \"b\"}", "text has a byte 0 at position 1"}};
  for (const auto& [line, message] : cases) {
    EXPECT_THAT(error(good + "\n" + line + "\n" + good, {"p", "r"}),
                AllOf(StartsWith("3: " + message), HasSubstr("/in, line 3")));
  }
}

TEST_F(Documents, FieldsMustBeOneNameOrTwo) {
  for (const std::vector<std::string>& fields :
       {std::vector<std::string>{""}, {"a", ""}, {"a", "a"}, {"a", "b", "c"}}) {
    EXPECT_THAT(error("{}", fields), StartsWith("2: JSONL fields are one name or two different"));
  }
}

TEST_F(Documents, TooFewForBothSplitsAreRefused) {
  EXPECT_THAT(error("{\"t\": \"some text\"}", {"t"}, 0.1),
              StartsWith("3: no document of the input falls into the validation split"));
  EXPECT_THAT(error(std::string(5000, 'x'), {}, 0.1, kSentencePiece),
              StartsWith("3: no line of the input falls into the validation split"));
}

TEST_F(Documents, AFileOfJsonLinesIsNotReadAsPlainText) {
  for (const char* name : {"pairs.jsonl", "pairs.ndjson"}) {
    write_file(folder_ / name, "{\"text\": \"one\"}\n");
    EXPECT_THAT(error_of([&] {
                  prepare({.inputs = {folder_ / name},
                           .output = folder_ / "out",
                           .validation_fraction = 0,
                           .progress = {}});
                }),
                AllOf(StartsWith("2: is JSONL by its name"), HasSubstr(name),
                      HasSubstr("--jsonl-fields text")));
    EXPECT_FALSE(std::filesystem::exists(folder_ / "out"));
  }
}

TEST_F(Documents, TextThatATokenizerCannotTakeIsRefusedByItsPlace) {
  EXPECT_THAT(error(std::string("ab\0cd", 5), {}),
              AllOf(StartsWith("3: text has a byte 0 at position 2"), HasSubstr("/in")));
  EXPECT_THAT(error("one\ntw\xff\n", {}, 0, kSentencePiece),
              AllOf(StartsWith("3: text is not UTF-8 at byte 2"), HasSubstr("/in, line 2")));
}

}  // namespace
}  // namespace flashshard::data
