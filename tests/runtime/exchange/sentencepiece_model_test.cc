// The tokenizer.json made of a SentencePiece model means the same: read by its own rules it gives
// the ids of SentencePiece. (check_tokenizers.py shows it with the package itself, over long
// texts.)
#include "runtime/exchange/sentencepiece_model.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/error.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::exchange {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::SizeIs;

const std::string kGolden = FLASHSHARD_TEST_DATA "/runtime/data/golden/";
const std::string kSpace = "\xe2\x96\x81";

json json_of(const proto::SentencePieceModel& model) {
  const auto text = sentencepiece_tokenizer_json(model);
  return text ? json::parse(*text) : json();
}

std::vector<std::string> characters_of(const std::string& text) {
  std::vector<std::string> characters;
  for (const char c : text) {
    if ((static_cast<uint8_t>(c) & 0xc0) != 0x80) characters.emplace_back();
    characters.back() += c;
  }
  return characters;
}

/// What a byte-pair tokenizer.json means: the earliest merge of the list that applies, again and
/// again; what is left and in no vocabulary is its bytes.
std::vector<int32_t> ids_by_rules(const json& tokenizer, const std::string& normalised) {
  std::map<std::string, size_t> ranks;
  for (const auto& merge : tokenizer["model"]["merges"]) {
    ranks.try_emplace(merge.get<std::string>(), ranks.size());
  }
  std::vector<std::string> pieces = characters_of(normalised);
  while (true) {
    size_t best = ranks.size();
    size_t at = 0;
    for (size_t i = 0; i + 1 < pieces.size(); ++i) {
      const auto found = ranks.find(pieces[i] + " " + pieces[i + 1]);
      if (found == ranks.end() || found->second >= best) continue;
      best = found->second;
      at = i;
    }
    if (best == ranks.size()) break;
    pieces[at] += pieces[at + 1];
    pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  const json& vocabulary = tokenizer["model"]["vocab"];
  std::vector<int32_t> ids;
  for (const std::string& piece : pieces) {
    if (vocabulary.contains(piece)) {
      ids.push_back(vocabulary[piece]);
      continue;
    }
    for (const char byte : piece) {
      char name[8];
      std::snprintf(name, sizeof(name), "<0x%02X>", static_cast<uint8_t>(byte));
      ids.push_back(vocabulary[name]);
    }
  }
  return ids;
}

/// The steps that the golden model's normalizer has.
std::string normalised(std::string text) {
  while (text.starts_with(' ')) text.erase(0, 1);
  for (size_t at; (at = text.find("  ")) != std::string::npos;) text.erase(at, 1);
  std::string result = kSpace;
  for (const char c : text) result += c == ' ' ? kSpace : std::string(1, c);
  return result;
}

TEST(SentencePieceTokenizerJson, GivesTheIdsOfSentencePiece) {
  const json tokenizer = json_of(read_sentencepiece_model(kGolden + "tokenizer.model"));
  ASSERT_EQ(tokenizer["model"]["type"], "BPE");
  EXPECT_EQ(tokenizer["model"]["byte_fallback"], true);
  EXPECT_EQ(tokenizer["model"]["unk_token"], "<unk>");
  const json& steps = tokenizer["normalizer"]["normalizers"];
  ASSERT_THAT(steps, SizeIs(4));
  EXPECT_EQ(steps[0]["pattern"]["Regex"], "^ +| +$");
  EXPECT_EQ(steps[1]["pattern"]["Regex"], " {2,}");
  EXPECT_EQ(steps[2], (json{{"type", "Prepend"}, {"prepend", kSpace}}));
  EXPECT_EQ(steps[3]["pattern"]["String"], " ");
  EXPECT_EQ(steps[3]["content"], kSpace);

  std::ifstream file(kGolden + "sentencepiece.json");
  for (const auto& example : json::parse(file)) {
    const auto text = example["text"].get<std::string>();
    EXPECT_EQ(ids_by_rules(tokenizer, normalised(text)), example["ids"].get<std::vector<int32_t>>())
        << text;
  }
}

TEST(SentencePieceTokenizerJson, NamesTheTokensThatAreNoText) {
  const json tokenizer = json_of(read_sentencepiece_model(kGolden + "tokenizer.model"));
  std::vector<std::string> names;
  for (const json& token : tokenizer["added_tokens"]) {
    names.push_back(token["content"]);
    EXPECT_EQ(token["id"], static_cast<int>(names.size()) - 1);
    EXPECT_EQ(token["special"], true);
  }
  EXPECT_THAT(names, ElementsAre("<unk>", "<s>", "</s>"));
}

/// A model of a few pieces.
proto::SentencePieceModel small_model() {
  proto::SentencePieceModel model;
  const auto add = [&](const std::string& piece, float score, PieceType type) {
    auto* added = model.add_pieces();
    added->set_piece(piece);
    added->set_score(score);
    added->set_type(static_cast<int32_t>(type));
  };
  add("<unk>", 0, PieceType::kUnknown);
  for (const char* piece : {"b", "a", "ab", "aba", "ba"}) {
    add(piece, -static_cast<float>(model.pieces_size()), PieceType::kNormal);
  }
  model.mutable_trainer()->set_model_type(static_cast<int32_t>(PieceModel::kBytePair));
  model.mutable_normalizer()->set_remove_extra_whitespaces(false);
  return model;
}

TEST(SentencePieceTokenizerJson, HasEveryCutOfAPieceInTheOrderOfScores) {
  const json tokenizer = json_of(small_model());
  EXPECT_THAT(tokenizer["model"]["merges"], ElementsAre("a b", "a ba", "ab a", "b a"));
  EXPECT_EQ(tokenizer["model"]["byte_fallback"], false);
}

TEST(SentencePieceTokenizerJson, CarriesTheTableOfCharactersAndLeavesOutWhatTheModelDoesNot) {
  proto::SentencePieceModel model = small_model();
  model.mutable_normalizer()->set_add_dummy_prefix(false);
  for (const auto& [bytes, text] : std::map<std::string, std::string>{
           {"Man", "TWFu"}, {"Ma", "TWE="}, {"M", "TQ=="}, {"\xff\xfe\xfd\x01", "//79AQ=="}}) {
    model.mutable_normalizer()->set_precompiled_charsmap(bytes);
    const json tokenizer = json_of(model);
    const json& steps = tokenizer["normalizer"]["normalizers"];
    ASSERT_THAT(steps, SizeIs(2));
    EXPECT_EQ(steps[0], (json{{"type", "Precompiled"}, {"precompiled_charsmap", text}}));
    EXPECT_THAT(tokenizer["decoder"]["decoders"], SizeIs(3)) << "nothing is stripped";
  }
}

TEST(SentencePieceTokenizerJson, OfAUnigramModelHasItsScores) {
  proto::SentencePieceModel model = small_model();
  model.mutable_trainer()->set_model_type(static_cast<int32_t>(PieceModel::kUnigram));
  const json tokenizer = json_of(model);
  EXPECT_EQ(tokenizer["model"]["type"], "Unigram");
  EXPECT_EQ(tokenizer["model"]["unk_id"], 0);
  EXPECT_EQ(tokenizer["model"]["vocab"][3], (json::array({"ab", -3.0})));
}

TEST(SentencePieceTokenizerJson, OfAUnigramModelPrefersCharactersToTheNamesOfWhatIsNoText) {
  proto::SentencePieceModel model = small_model();
  model.mutable_trainer()->set_model_type(static_cast<int32_t>(PieceModel::kUnigram));
  for (const PieceType type : {PieceType::kControl, PieceType::kByte}) {
    auto* piece = model.add_pieces();
    piece->set_piece(type == PieceType::kByte ? "<0x41>" : "<s>");
    piece->set_type(static_cast<int32_t>(type));
  }
  const json vocabulary = json_of(model)["model"]["vocab"];
  for (const int id : {0, 6, 7}) {  // the least score of a piece is -5
    EXPECT_LT(vocabulary[id][1].get<double>(), -5.0 * 6) << vocabulary[id];
  }
}

TEST(SentencePieceTokenizerJson, OfAUnigramModelSetsUnknownCharactersOfSuchNamesApart) {
  proto::SentencePieceModel model = small_model();
  model.mutable_trainer()->set_model_type(static_cast<int32_t>(PieceModel::kUnigram));
  EXPECT_TRUE(json_of(model)["pre_tokenizer"].is_null()) << "nothing to fall back to";
  for (int byte = 0; byte < 256; ++byte) {
    auto* piece = model.add_pieces();
    piece->set_piece(fmt::format("<0x{:02X}>", byte));
    piece->set_type(static_cast<int32_t>(PieceType::kByte));
  }
  model.mutable_pieces(5)->set_piece("0123456789ABCDEFxunk>");
  const json steps = json_of(model)["pre_tokenizer"]["pretokenizers"];
  ASSERT_THAT(steps, SizeIs(1));
  EXPECT_EQ(steps[0]["pattern"]["String"], "<");
  EXPECT_EQ(steps[0]["behavior"], "Isolated");
  model.mutable_pieces(4)->set_piece("<");
  EXPECT_TRUE(json_of(model)["pre_tokenizer"].is_null());
}

TEST(SentencePieceTokenizerJson, IsNotMadeOfWhatThatFormatCannotSay) {
  proto::SentencePieceModel model = small_model();
  model.mutable_trainer()->set_model_type(3);  // words
  EXPECT_FALSE(sentencepiece_tokenizer_json(model));
  model = small_model();
  model.mutable_pieces(4)->set_type(static_cast<int32_t>(PieceType::kUserDefined));
  EXPECT_FALSE(sentencepiece_tokenizer_json(model));
  model = small_model();
  model.mutable_pieces(0)->set_type(static_cast<int32_t>(PieceType::kControl));
  EXPECT_FALSE(sentencepiece_tokenizer_json(model)) << "nothing is unknown";
  model = small_model();
  model.mutable_trainer()->set_treat_whitespace_as_suffix(true);
  EXPECT_FALSE(sentencepiece_tokenizer_json(model));
  model = small_model();
  model.mutable_normalizer()->set_escape_whitespaces(false);
  EXPECT_FALSE(sentencepiece_tokenizer_json(model));
}

TEST(SentencePieceModel, ThatIsNoneIsRefused) {
  checkpoint::test::TemporaryFolder folder;
  checkpoint::test::write_text(folder / "tokenizer.model", "\xff\xff\xff");
  try {
    read_sentencepiece_model(folder / "tokenizer.model");
    FAIL() << "read";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("it is no SentencePiece model"));
  }
}

}  // namespace
}  // namespace flashshard::exchange
