#include "runtime/exchange/sentencepiece_model.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <vector>

#include "kernels/error.h"
#include "runtime/data/file.h"

namespace flashshard::exchange {
namespace {

using nlohmann::ordered_json;
using proto::SentencePieceModel;

constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, by which pieces write a space

bool is(const SentencePieceModel::Piece& piece, PieceType type) {
  return piece.type() == static_cast<int32_t>(type);
}

bool has_tokenizer_json(const SentencePieceModel& model) {
  const int32_t kind = model.trainer().model_type();
  const auto unknown = std::ranges::count_if(
      model.pieces(), [](const auto& piece) { return is(piece, PieceType::kUnknown); });
  return (kind == static_cast<int32_t>(PieceModel::kBytePair) ||
          kind == static_cast<int32_t>(PieceModel::kUnigram)) &&
         unknown == 1 && model.normalizer().escape_whitespaces() &&
         !model.trainer().treat_whitespace_as_suffix() &&
         std::ranges::none_of(model.pieces(), [](const auto& piece) {
           return is(piece, PieceType::kUserDefined) || is(piece, PieceType::kUnused);
         });
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    const std::string_view three = bytes.substr(at, 3);
    uint32_t bits = 0;
    for (size_t i = 0; i < 3; ++i) {
      bits = bits << 8 | (i < three.size() ? static_cast<uint8_t>(three[i]) : 0u);
    }
    for (size_t i = 0; i < 4; ++i) {
      text += i <= three.size() ? kDigits[bits >> (18 - 6 * i) & 63] : '=';
    }
  }
  return text;
}

ordered_json replace(std::string_view kind, std::string_view pattern, std::string_view content) {
  return {{"type", "Replace"}, {"pattern", {{kind, pattern}}}, {"content", content}};
}

ordered_json sequence(std::string_view of, ordered_json steps) {
  return {{"type", "Sequence"}, {of, std::move(steps)}};
}

ordered_json normalizer_of(const SentencePieceModel& model) {
  ordered_json steps = ordered_json::array();
  if (!model.normalizer().precompiled_charsmap().empty()) {
    steps.push_back({{"type", "Precompiled"},
                     {"precompiled_charsmap", base64(model.normalizer().precompiled_charsmap())}});
  }
  if (model.normalizer().remove_extra_whitespaces()) {
    steps.push_back(replace("Regex", "^ +| +$", ""));
    steps.push_back(replace("Regex", " {2,}", " "));
  }
  if (model.normalizer().add_dummy_prefix()) {
    steps.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
  }
  steps.push_back(replace("String", " ", kSpace));
  return sequence("normalizers", std::move(steps));
}

ordered_json decoder_of(const SentencePieceModel& model) {
  ordered_json steps = {
      replace("String", kSpace, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
  if (model.normalizer().add_dummy_prefix()) {
    steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  return sequence("decoders", std::move(steps));
}

ordered_json added_tokens_of(const SentencePieceModel& model) {
  ordered_json tokens = ordered_json::array();
  for (int id = 0; id < model.pieces_size(); ++id) {
    const auto& piece = model.pieces(id);
    if (!is(piece, PieceType::kUnknown) && !is(piece, PieceType::kControl)) continue;
    tokens.push_back({{"id", id},
                      {"content", piece.piece()},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false},
                      {"special", true}});
  }
  return tokens;
}

bool continues_a_character(char byte) { return (static_cast<uint8_t>(byte) & 0xc0) == 0x80; }

std::set<std::string> characters_of(std::string_view text) {
  std::set<std::string> characters;
  for (size_t at = 0, end = 0; at < text.size(); at = end) {
    for (end = at + 1; end < text.size() && continues_a_character(text[end]);) ++end;
    characters.emplace(text.substr(at, end - at));
  }
  return characters;
}

/// A byte-pair model joins what makes the piece of the highest score; a list of merges has the
/// pairs in the order of that. Every cut of a piece into two pieces is such a pair.
ordered_json merges_of(const SentencePieceModel& model) {
  std::vector<const SentencePieceModel::Piece*> normal;
  std::set<std::string_view> pieces;
  for (const auto& piece : model.pieces()) {
    if (!is(piece, PieceType::kNormal)) continue;
    normal.push_back(&piece);
    pieces.insert(piece.piece());
  }
  std::ranges::stable_sort(normal,
                           [](const auto* a, const auto* b) { return a->score() > b->score(); });
  ordered_json merges = ordered_json::array();
  for (const auto* piece : normal) {
    const std::string_view text = piece->piece();
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const bool in_a_character = continues_a_character(text[cut]);
      const std::string_view left = text.substr(0, cut);
      const std::string_view right = text.substr(cut);
      if (in_a_character || !pieces.contains(left) || !pieces.contains(right)) continue;
      merges.push_back(std::string(left) + ' ' + std::string(right));
    }
  }
  return merges;
}

ordered_json byte_pair_model(const SentencePieceModel& model, int unknown) {
  ordered_json vocabulary = ordered_json::object();
  // operator[] looks for the key among all before it, which pieces never repeat.
  auto& entries = vocabulary.get_ref<ordered_json::object_t&>();
  entries.reserve(static_cast<size_t>(model.pieces_size()));
  for (int id = 0; id < model.pieces_size(); ++id) {
    entries.emplace_back(model.pieces(id).piece(), id);
  }
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", model.pieces(unknown).piece()},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", true},
          {"byte_fallback", falls_back_to_bytes(model)},
          {"vocab", std::move(vocabulary)},
          {"merges", merges_of(model)}};
}

/// SentencePiece finds normal pieces alone in a text, a tokenizer.json all of its vocabulary: with
/// this score "<0x41>", "<s>" and "<unk>" lose against the pieces of their characters.
double score_of_no_text(const SentencePieceModel& model) {
  constexpr double kMoreThanANameHasCharacters = 1000;
  constexpr double kUnknownBelowLeast = 10;  // as far as both put a character that is no piece
  double least = 0;
  for (const auto& piece : model.pieces()) {
    if (is(piece, PieceType::kNormal)) least = std::min<double>(least, piece.score());
  }
  return kMoreThanANameHasCharacters * (least - kUnknownBelowLeast);
}

/// A character of such a name that is in no normal piece would cost more than the name: each stands
/// by itself, which changes nothing else. (Without bytes to fall back to it would: neighbouring
/// characters that are unknown are one token.)
ordered_json pre_tokenizer_of(const SentencePieceModel& model) {
  if (model.trainer().model_type() != static_cast<int32_t>(PieceModel::kUnigram) ||
      !falls_back_to_bytes(model)) {
    return nullptr;
  }
  std::set<std::string> known;
  std::set<std::string> in_names;
  for (const auto& piece : model.pieces()) {
    (is(piece, PieceType::kNormal) ? known : in_names).merge(characters_of(piece.piece()));
  }
  ordered_json splits = ordered_json::array();
  for (const std::string& character : in_names) {
    if (known.contains(character)) continue;
    splits.push_back({{"type", "Split"},
                      {"pattern", {{"String", character}}},
                      {"behavior", "Isolated"},
                      {"invert", false}});
  }
  return splits.empty() ? ordered_json() : sequence("pretokenizers", std::move(splits));
}

ordered_json unigram_model(const SentencePieceModel& model, int unknown) {
  const double never = score_of_no_text(model);
  ordered_json vocabulary = ordered_json::array();
  for (const auto& piece : model.pieces()) {
    const double score = is(piece, PieceType::kNormal) ? piece.score() : never;
    vocabulary.push_back(ordered_json::array({piece.piece(), score}));
  }
  return {{"type", "Unigram"},
          {"unk_id", unknown},
          {"vocab", std::move(vocabulary)},
          {"byte_fallback", falls_back_to_bytes(model)}};
}

}  // namespace

bool falls_back_to_bytes(const SentencePieceModel& model) {
  return std::ranges::count_if(
             model.pieces(), [](const auto& piece) { return is(piece, PieceType::kByte); }) == 256;
}

SentencePieceModel read_sentencepiece_model(const std::filesystem::path& path) {
  const data::MappedFile file(path);
  SentencePieceModel model;
  if (file.bytes().size() > static_cast<size_t>(std::numeric_limits<int>::max()) ||
      !model.ParseFromArray(file.bytes().data(), static_cast<int>(file.bytes().size()))) {
    throw Error(ExitCode::kBadData, "bad tokenizer file: it is no SentencePiece model",
                path.string());
  }
  return model;
}

std::optional<std::string> sentencepiece_tokenizer_json(const SentencePieceModel& model) {
  if (!has_tokenizer_json(model)) return std::nullopt;
  const auto is_unknown = [](const auto& piece) { return is(piece, PieceType::kUnknown); };
  const auto unknown =
      static_cast<int>(std::ranges::find_if(model.pieces(), is_unknown) - model.pieces().begin());
  const bool byte_pair =
      model.trainer().model_type() == static_cast<int32_t>(PieceModel::kBytePair);
  ordered_json json = {{"version", "1.0"},
                       {"truncation", nullptr},
                       {"padding", nullptr},
                       {"added_tokens", added_tokens_of(model)},
                       {"normalizer", normalizer_of(model)},
                       {"pre_tokenizer", pre_tokenizer_of(model)},
                       {"post_processor", nullptr},
                       {"decoder", decoder_of(model)}};
  json["model"] = byte_pair ? byte_pair_model(model, unknown) : unigram_model(model, unknown);
  return json.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace flashshard::exchange
