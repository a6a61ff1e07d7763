// Tokenizers: bytes here, others in a process of their own, whose failures all end in one clear
// error.
#include "runtime/data/tokenizer.h"

#include <nlohmann/json.hpp>

#include <array>
#include <cstdlib>
#include <fstream>

#include "runtime/data/tokenizer_process.h"
#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;
using Ids = std::vector<int32_t>;

const std::filesystem::path kHere = FLASHSHARD_TEST_DATA "/runtime/data";

Ids encode(Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.encode(std::array{text}).front();
}

TEST(TokenizerIdentity, IsReadBackFromItsLine) {
  const TokenizerIdentity identity{"sentencepiece", 0xfedcba9876543210, 32000, 2};
  EXPECT_EQ(identity.text(), "sentencepiece fedcba9876543210 32000 2");
  EXPECT_EQ(parse_identity(identity.text()), identity);
  EXPECT_EQ(parse_identity(TokenizerIdentity{}.text()), TokenizerIdentity{});
  for (const char* line : {"", "byte", "byte 0 256", "byte 0 256 x", "byte 0 256 0 0", " 0 1 2",
                           "byte 0  256 0", "byte 0 256 99999999999"}) {
    EXPECT_EQ(parse_identity(line), std::nullopt) << line;
  }
}

TEST(ByteTokenizer, TakesEveryByteButTheOneThatEndsDocuments) {
  ByteTokenizer tokenizer;
  EXPECT_EQ(encode(tokenizer, "a\xff\x01"), (Ids{97, 255, 1}));
  EXPECT_EQ(tokenizer.decode(Ids{97, 255, 1}), "a\xff\x01");
  EXPECT_EQ(tokenizer.identity().end_of_document, 0);
  EXPECT_THAT(error_of([&] { encode(tokenizer, std::string_view("ab\0c", 4)); }),
              StartsWith("3: text has a byte 0 at position 2"));
  EXPECT_THAT(error_of([&] { tokenizer.decode(Ids{256}); }), StartsWith("3: token id 256"));
}

TEST(MakeTokenizer, RefusesOtherNames) {
  for (const char* name : {"", "bytes", "sentencepiece:", "hf:", "hf"}) {
    EXPECT_THAT(error_of([&] { make_tokenizer(name); }), StartsWith("2: unknown tokenizer `"));
  }
  EXPECT_THAT(error_of([&] { make_tokenizer("hf:/nowhere"); }),
              AllOf(StartsWith("3: cannot open file"), HasSubstr("/nowhere/tokenizer.json")));
  EXPECT_THAT(error_of([&] { make_tokenizer("sentencepiece:/nowhere"); }),
              StartsWith("3: cannot open file"));
}

TEST(OpenTokenizer, RefusesAnotherModelAndAnUnknownKind) {
  EXPECT_EQ(open_tokenizer({}, "/nowhere")->identity().kind, "byte");
  EXPECT_THAT(error_of([&] { open_tokenizer({.kind = "llm.c"}, "/nowhere"); }),
              StartsWith("2: llm.c shards do not say how their tokens were made"));
  EXPECT_THAT(error_of([&] { open_tokenizer({.kind = "sentencepiece"}, kHere / "golden"); }),
              StartsWith("3: this is another tokenizer"));
}

std::unique_ptr<TokenizerProcess> stand_in(const char* behaviour, double deadline = 60) {
  TokenizerProcess::Options options;
  options.command = {"python3", (kHere / "stand_in_tokenizer.py").string(), behaviour};
  options.kind = "hf";
  options.files = {kHere / "stand_in_tokenizer.py"};
  options.deadline = std::chrono::duration<double>(deadline);
  return std::make_unique<TokenizerProcess>(std::move(options));
}

TEST(TokenizerProcess, EncodesBatchesAndDecodes) {
  const auto tokenizer = stand_in("works");
  EXPECT_EQ(tokenizer->identity().vocab_size, 1000);
  EXPECT_EQ(tokenizer->identity().end_of_document, 0);
  EXPECT_NE(tokenizer->identity().hash, 0u);
  const std::array<std::string_view, 3> texts = {"ab", "", "\u00e9"};
  EXPECT_EQ(tokenizer->encode(texts), (std::vector<Ids>{{97, 98}, {}, {233}}));
  EXPECT_EQ(tokenizer->decode(Ids{97, 233}), "a\u00e9");
  // More than a socket's buffer holds, in both directions.
  const std::string large(3'000'000, 'x');
  EXPECT_EQ(encode(*tokenizer, large), Ids(large.size(), 'x'));
  EXPECT_EQ(tokenizer->decode(Ids(large.size(), 'x')), large);
}

struct Behaviour {
  const char* name;
  const char* error;
};
class BadGreeting : public testing::TestWithParam<Behaviour> {};

TEST_P(BadGreeting, IsOneError) {
  EXPECT_THAT(error_of([] { stand_in(GetParam().name); }),
              AllOf(StartsWith(GetParam().error), HasSubstr("stand_in_tokenizer.py")));
}

INSTANTIATE_TEST_SUITE_P(
    Programs, BadGreeting,
    testing::Values(
        Behaviour{"refuses", "2: has no package for this"},
        Behaviour{"dies",
                  "1: the hf tokenizer's process failed: it ended before its work was "
                  "done (the last words)"},
        Behaviour{"babbles", "1: the hf tokenizer's process failed: its answer is outside"},
        Behaviour{"large", "1: the hf tokenizer's process failed: its answer is outside"},
        Behaviour{"strange", "1: the hf tokenizer's process failed: its greeting is not"},
        Behaviour{"endless", "1: the hf tokenizer's process failed: a vocabulary of 1000 with"}));

TEST(TokenizerProcess, ThatDoesNotAnswerIsEndedAtTheDeadline) {
  EXPECT_THAT(error_of([] { stand_in("hangs", 0.2); }),
              HasSubstr("it has not answered for 0.2 seconds"));
}

TEST(TokenizerProcess, ThatCannotBeStartedNamesTheProgram) {
  TokenizerProcess::Options options;
  options.command = {"/nowhere/tokenizer"};
  options.files = {kHere / "stand_in_tokenizer.py"};
  options.program_hint = "install it";
  EXPECT_THAT(error_of([&] { TokenizerProcess{options}; }),
              AllOf(StartsWith("2: cannot start /nowhere/tokenizer"), HasSubstr("install it")));
}

TEST(TokenizerProcess, FailuresInTheMiddleAreErrors) {
  EXPECT_THAT(error_of([] { encode(*stand_in("breaks"), "a"); }),
              AllOf(StartsWith("1: "), HasSubstr("(RuntimeError: broken inside)")));
  EXPECT_THAT(error_of([] { encode(*stand_in("lies"), "a"); }),
              HasSubstr("it gave the id 5000, its vocabulary has 1000"));
  EXPECT_THAT(error_of([] { encode(*stand_in("floods"), "abc"); }),
              HasSubstr("it gave 4294967295 tokens for 3 bytes of text"));
  EXPECT_THAT(error_of([] {
                stand_in("floods")->decode(Ids{1, 2});
              }),
              HasSubstr("it gave 4294967295 bytes of text for 2 tokens"));
  const auto complains = stand_in("complains");
  for (int i = 0; i < 2; ++i) {  // it is still there afterwards
    EXPECT_THAT(error_of([&] { encode(*complains, "a"); }),
                StartsWith("3: does not like this text"));
  }
}

TEST(SentencePiece, GivesTheIdsOfItsOwnCommandLine) {
  const auto tokenizer =
      make_tokenizer("sentencepiece:" + (kHere / "golden/tokenizer.model").string());
  EXPECT_EQ(tokenizer->identity().kind, "sentencepiece");
  EXPECT_EQ(tokenizer->identity().vocab_size, 340);
  EXPECT_EQ(tokenizer->identity().end_of_document, 2);
  std::ifstream file(kHere / "golden/sentencepiece.json");
  for (const auto& example : nlohmann::json::parse(file)) {
    const auto text = example["text"].get<std::string>();
    const Ids ids = encode(*tokenizer, text);
    EXPECT_EQ(ids, example["ids"].get<Ids>()) << text;
    if (!text.starts_with(' ')) {  // the model drops spaces at the beginning and doubled ones
      EXPECT_EQ(tokenizer->decode(ids), text);
    }
  }
  EXPECT_THAT(error_of([&] { tokenizer->decode(Ids{340}); }),
              StartsWith("3: token id 340 is outside the vocabulary"));
}

TEST(SentencePiece, RefusesAFileThatIsNoModel) {
  DataFolder folder;
  write_file(folder / "m", "no model");
  EXPECT_THAT(error_of([&] { make_tokenizer("sentencepiece:" + (folder / "m").string()); }),
              AllOf(StartsWith("3: is not a SentencePiece model"), HasSubstr("/m)")));
}

TEST(TextStream, ShowsWholeCharactersAndTheSpacesBetweenPieces) {
  const auto tokenizer =
      make_tokenizer("sentencepiece:" + (kHere / "golden/tokenizer.model").string());
  const std::string text =
      "the na\u00efve \u65e5\u672c \U0001f600 light. the end of it, many words on";
  const Ids ids = encode(*tokenizer, text);
  TextStream stream(*tokenizer, std::span(ids).first(1));
  std::string shown;
  for (size_t i = 1; i < ids.size(); ++i) {
    const std::string piece = stream.push(ids[i]);
    EXPECT_EQ(piece.find("\ufffd"), std::string::npos);
    shown += piece;
  }
  EXPECT_EQ("the" + shown + stream.finish(), text);
}

TEST(TextStream, ShowsAnUnfinishedCharacterAtTheEnd) {
  const auto tokenizer =
      make_tokenizer("sentencepiece:" + (kHere / "golden/tokenizer.model").string());
  Ids ids = encode(*tokenizer, "a \u65e5");
  ids.pop_back();  // bytes of a character
  TextStream stream(*tokenizer, std::span(ids).first(1));
  std::string shown;
  for (size_t i = 1; i < ids.size(); ++i) shown += stream.push(ids[i]);
  EXPECT_EQ(shown.find("\ufffd"), std::string::npos);
  EXPECT_NE(stream.finish().find("\ufffd"), std::string::npos);
}

/// Tokens are bytes; like Hugging Face's ByteFallback, a run of bytes that is no UTF-8 as a whole
/// becomes as many replacement characters.
class FallbackTokenizer final : public ByteTokenizer {
 public:
  std::string decode(std::span<const int32_t> tokens) override {
    const std::string bytes = ByteTokenizer::decode(tokens);
    const auto continues = [](char c) { return (c & 0xc0) == 0x80; };
    std::string whole;
    for (size_t i = 0; i < bytes.size();) {
      const auto lead = static_cast<unsigned char>(bytes[i]);
      const size_t size = lead < 0x80 ? 1 : lead < 0xc0 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
      const std::string character = bytes.substr(i, size);
      if (size == 0 || character.size() < size ||
          !std::all_of(character.begin() + 1, character.end(), continues)) {
        std::string replaced;
        for (size_t k = 0; k < bytes.size(); ++k) replaced += "\ufffd";
        return replaced;
      }
      whole += character;
      i += size;
    }
    return whole;
  }
};

TEST(TextStream, NeverBeginsItsContextInsideACharacter) {
  FallbackTokenizer tokenizer;
  for (const std::string context : {"ab", "\u65e5\u672c\u8a9e\u65e5\u672c\u8a9e", "x\u65e5"}) {
    const std::string text =
        "\u65e5\u672c\u8a9e\u65e5\u672c\u8a9e\u65e5\u672c\u8a9eab\U0001f600\u00ef";
    const Ids before = encode(tokenizer, context);
    TextStream stream(tokenizer, before);
    std::string shown;
    for (const int32_t id : encode(tokenizer, text)) shown += stream.push(id);
    EXPECT_EQ(shown + stream.finish(), text) << context;
  }
}

TEST(HuggingFaceProgram, ThatIsMissingIsAnErrorOfUse) {
  DataFolder folder;
  const char* before = std::getenv("FLASHSHARD_LIBEXEC");
  const std::string kept = before == nullptr ? "" : before;
  ::setenv("FLASHSHARD_LIBEXEC", folder.path().c_str(), 1);
  EXPECT_THAT(
      error_of([&] { make_tokenizer("hf:" + folder.path().string()); }),
      AllOf(StartsWith("2: cannot find the tokenizer program"), HasSubstr("FLASHSHARD_LIBEXEC")));
  before == nullptr ? ::unsetenv("FLASHSHARD_LIBEXEC")
                    : ::setenv("FLASHSHARD_LIBEXEC", kept.c_str(), 1);
}

/// A folder with a tokenizer.json of a few whole words.
void write_word_tokenizer(const DataFolder& folder, const char* settings) {
  write_file(folder / "tokenizer.json", R"({"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 3, "content": "<eos>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}],
    "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"let": 0, "be": 1, "<unk>": 2, "<eos>": 3, "light": 7},
              "unk_token": "<unk>"}})");
  write_file(folder / "tokenizer_config.json", settings);
}

class HuggingFace : public testing::Test {
 protected:
  HuggingFace() {
    if (std::system("python3 -c 'import tokenizers' 2>/dev/null") != 0) skip_ = true;
  }
  std::string error() {
    return error_of([&] { make_tokenizer("hf:" + folder_.path().string()); });
  }

  DataFolder folder_;
  bool skip_ = false;
};

TEST_F(HuggingFace, GivesTheIdsOfThePackage) {
  if (skip_) GTEST_SKIP() << "python3 has no package tokenizers";
  write_word_tokenizer(folder_, R"({"eos_token": {"content": "<eos>"}})");
  const auto tokenizer = make_tokenizer("hf:" + folder_.path().string());
  EXPECT_EQ(tokenizer->identity().vocab_size, 8);  // ids may have gaps
  EXPECT_EQ(tokenizer->identity().end_of_document, 3);
  EXPECT_EQ(encode(*tokenizer, "let light be new"), (Ids{0, 7, 1, 2}));
  EXPECT_EQ(encode(*tokenizer, "let <eos>be"), (Ids{0, 2})) << "text never ends a document";
  EXPECT_EQ(tokenizer->decode(Ids{0, 7}), "let light");
  EXPECT_EQ(tokenizer->files().size(), 2u);
  EXPECT_THAT(error_of([&] { encode(*tokenizer, "\xff"); }), StartsWith("3: text is not UTF-8"));
}

TEST_F(HuggingFace, RefusesAFolderThatNamesNoEndOfDocument) {
  if (skip_) GTEST_SKIP() << "python3 has no package tokenizers";
  write_word_tokenizer(folder_, R"({"eos_token": "<nowhere>"})");
  EXPECT_THAT(error(), StartsWith("3: its vocabulary lacks the eos_token"));
  write_file(folder_ / "tokenizer_config.json", "{");
  EXPECT_THAT(error(), StartsWith("3: tokenizer_config.json cannot be read"));
  write_file(folder_ / "tokenizer.json", "{}");
  EXPECT_THAT(error(), StartsWith("3: is not a tokenizer.json"));
}

TEST_F(HuggingFace, WithoutThePackageSaysWhatToInstall) {
  write_word_tokenizer(folder_, "{}");
  // -I and -S of the interpreter are not ours to give: a module of that name hides the package.
  write_file(folder_ / "tokenizers.py", "raise ImportError");
  ASSERT_EQ(::setenv("PYTHONPATH", folder_.path().c_str(), 1), 0);
  EXPECT_THAT(error(), AllOf(StartsWith("2: python3 has no package `tokenizers`: pip install"),
                             HasSubstr("tokenizer.json")));
  ::unsetenv("PYTHONPATH");
}

}  // namespace
}  // namespace flashshard::data
