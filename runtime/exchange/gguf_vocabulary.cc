#include "runtime/exchange/gguf_vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/error.h"
#include "runtime/data/file.h"
#include "runtime/exchange/json_text.h"
#include "runtime/exchange/sentencepiece_model.h"
#include "runtime/exchange/tokenizer_files.h"

namespace flashshard::exchange {
namespace {

using nlohmann::json;

constexpr int32_t kNormal = 1;
constexpr int32_t kControl = 3;
constexpr int32_t kUserDefined = 4;
constexpr int32_t kUnused = 5;

/// How families split text before their merges, by the regular expression in tokenizer.json.
struct Splitting {
  std::string_view name;
  std::string_view expression;
};
constexpr std::array<Splitting, 2> kSplittings = {
    {{"llama-bpe",
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
     {"qwen2",
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}}};

[[noreturn]] void refuse(const std::string& where, std::string_view why) {
  throw Error(ExitCode::kUsage,
              fmt::format("llama.cpp has no counterpart of this tokenizer: {}", why), where,
              "leave it out with --no-tokenizer");
}
[[noreturn]] void damaged(const std::string& where, std::string_view what) {
  throw Error(ExitCode::kBadData, fmt::format("bad tokenizer file: {}", what), where);
}

GgufVocabulary byte_vocabulary() {
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.splitting = "gpt-2";
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.push_back(byte_level_character(static_cast<uint8_t>(byte)));
    vocabulary.types.push_back(byte == 0 ? kControl : kNormal);
  }
  return vocabulary;
}

GgufVocabulary sentencepiece_vocabulary(const std::filesystem::path& path) {
  const proto::SentencePieceModel model = read_sentencepiece_model(path);
  if (model.trainer().model_type() != static_cast<int32_t>(PieceModel::kBytePair))
    refuse(path.string(), "its model is not byte-pair encoding");
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.splitting = "default";
  for (const auto& piece : model.pieces()) {
    vocabulary.tokens.push_back(piece.piece());
    vocabulary.scores.push_back(piece.score());
    vocabulary.types.push_back(piece.type());
  }
  if (!falls_back_to_bytes(model)) {
    refuse(path.string(), "it does not fall back to bytes");
  }
  vocabulary.add_space_prefix = model.normalizer().add_dummy_prefix();
  if (model.normalizer().remove_extra_whitespaces() ||
      !model.normalizer().precompiled_charsmap().empty()) {
    vocabulary.warnings.emplace_back(
        "the tokenizer changes white space or characters before it splits a text; llama.cpp does "
        "not");
  }
  return vocabulary;
}

/// llama.cpp's name for the pre-tokenizer of a byte-level BPE.
std::string splitting_of(const json& pre_tokenizer, const std::string& where) {
  const json steps = pre_tokenizer.is_object() && pre_tokenizer.value("type", "") == "Sequence"
                         ? pre_tokenizer.value("pretokenizers", json::array())
                         : json::array({pre_tokenizer});
  std::string name;
  bool byte_level = false;
  const auto split_as = [&](std::string_view splitting) {
    if (!name.empty()) refuse(where, "it splits a text twice");
    name = splitting;
  };
  for (const json& step : steps) {
    if (!step.is_object()) break;
    const std::string type = step.value("type", "");
    if (type == "ByteLevel") {
      byte_level = true;
      if (step.value("add_prefix_space", true)) refuse(where, "it adds a space before a text");
      if (step.value("use_regex", true)) split_as("gpt-2");
    } else if (type == "Split") {
      const json pattern = step.value("pattern", json::object());
      const std::string expression = pattern.is_object() ? pattern.value("Regex", "") : "";
      const auto known = std::ranges::find(kSplittings, expression, &Splitting::expression);
      if (known == kSplittings.end()) {
        refuse(where, "its splitting expression is not one of Llama 3 or Qwen2");
      }
      if (step.value("behavior", "") != "Isolated" || step.value("invert", false)) {
        refuse(where, "its splitting expression does not cut out what it matches");
      }
      split_as(known->name);
    } else {
      refuse(where, fmt::format("its pre-tokenizer is {}", type));
    }
  }
  if (!byte_level) refuse(where, "it is not byte-level");
  if (name.empty()) refuse(where, "it has no splitting expression");
  return name;
}

[[noreturn]] void too_large(const std::string& what, const std::string& where) {
  throw Error(ExitCode::kUsage, what, where, "leave it out with --no-tokenizer");
}

/// `rows`: of the embedding. An id from a file must not decide what is allocated.
void set_token(GgufVocabulary& vocabulary, const json& id, const std::string& text, int32_t type,
               int64_t rows, const std::string& where) {
  if (!id.is_number_unsigned()) damaged(where, "an id is no number of a token");
  const auto at = id.get<uint64_t>();
  if (at >= static_cast<uint64_t>(rows)) {
    too_large(fmt::format("the tokenizer has a token {}, the model {} tokens", at, rows), where);
  }
  if (at >= vocabulary.tokens.size()) {
    vocabulary.tokens.resize(at + 1);
    vocabulary.types.resize(at + 1, kUnused);
  }
  vocabulary.tokens[at] = text;
  vocabulary.types[at] = type;
}

GgufVocabulary hugging_face_vocabulary(const std::filesystem::path& path, int64_t rows) {
  const std::string where = path.string();
  const data::MappedFile file(path);
  const auto parsed =
      parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
  if (!parsed || !parsed->is_object() || !parsed->contains("model")) {
    damaged(where, "it has no model");
  }
  const json& tokenizer = *parsed;
  try {
    const json& model = tokenizer.at("model");
    if (model.value("type", "BPE") != "BPE") refuse(where, "its model is not byte-pair encoding");
    const json normalizer = tokenizer.value("normalizer", json());
    if (!normalizer.is_null() && normalizer.value("type", "") != "NFC") {
      refuse(where, "its normalizer is not NFC");
    }
    GgufVocabulary vocabulary;
    vocabulary.model = "gpt2";
    vocabulary.splitting = splitting_of(tokenizer.value("pre_tokenizer", json()), where);
    for (const auto& [token, id] : model.at("vocab").items()) {
      set_token(vocabulary, id, token, kNormal, rows, where);
    }
    for (const json& added : tokenizer.value("added_tokens", json::array())) {
      set_token(vocabulary, added.at("id"), added.at("content").get<std::string>(),
                added.value("special", false) ? kControl : kUserDefined, rows, where);
    }
    for (const json& merge : model.at("merges")) {
      vocabulary.merges.push_back(merge.is_array() ? merge.at(0).get<std::string>() + " " +
                                                         merge.at(1).get<std::string>()
                                                   : merge.get<std::string>());
    }
    return vocabulary;
  } catch (const json::exception& error) {
    damaged(where, error.what());
  }
}

}  // namespace

GgufVocabulary read_gguf_vocabulary(const data::TokenizerIdentity& identity,
                                    const std::filesystem::path& folder, int64_t rows) {
  if (identity.kind == "byte") return byte_vocabulary();
  if (identity.kind != "sentencepiece" && identity.kind != "hf") {
    refuse("", fmt::format("{} shards do not say how their tokens were made", identity.kind));
  }
  const bool pieces = identity.kind == "sentencepiece";
  const auto path = folder / (pieces ? data::kSentencePieceFile : data::kHuggingFaceFile);
  require_tokenizer_file(identity, path);
  if (pieces) return sentencepiece_vocabulary(path);
  GgufVocabulary vocabulary = hugging_face_vocabulary(path, rows);
  vocabulary.beginning_of_text = beginning_of_text(path);
  if (vocabulary.beginning_of_text >= static_cast<int64_t>(vocabulary.tokens.size())) {
    damaged(path.string(), "post_processor: an id is no number of a token");
  }
  return vocabulary;
}

void add_vocabulary(GgufVocabulary vocabulary, int32_t end_of_document, int64_t rows,
                    GgufHeader& header) {
  if (static_cast<int64_t>(vocabulary.tokens.size()) > rows) {
    too_large(
        fmt::format("the tokenizer has {} tokens, the model {}", vocabulary.tokens.size(), rows),
        "");
  }
  vocabulary.tokens.resize(static_cast<size_t>(rows));
  vocabulary.types.resize(static_cast<size_t>(rows), kUnused);
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    // llama.cpp wants a text of its own for every token.
    if (vocabulary.tokens[i].empty()) vocabulary.tokens[i] = fmt::format("[PAD{}]", i);
  }
  header.add_text("tokenizer.ggml.model", vocabulary.model);
  header.add_text("tokenizer.ggml.pre", vocabulary.splitting);
  header.add_texts("tokenizer.ggml.tokens", vocabulary.tokens);
  if (vocabulary.model == "llama") {
    vocabulary.scores.resize(static_cast<size_t>(rows), -1000.0f);
    header.add_reals("tokenizer.ggml.scores", vocabulary.scores);
  }
  header.add_integers("tokenizer.ggml.token_type", vocabulary.types);
  if (vocabulary.model == "gpt2") header.add_texts("tokenizer.ggml.merges", vocabulary.merges);
  if (end_of_document >= 0) header.add_number("tokenizer.ggml.eos_token_id", end_of_document);
  const bool begins = vocabulary.beginning_of_text != data::kNoToken;
  if (begins) header.add_number("tokenizer.ggml.bos_token_id", vocabulary.beginning_of_text);
  header.add_flag("tokenizer.ggml.add_bos_token", begins);
  header.add_flag("tokenizer.ggml.add_eos_token", false);
  header.add_flag("tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix);
}

}  // namespace flashshard::exchange
