#include "runtime/exchange/tokenizer_files.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/error.h"
#include "runtime/data/file.h"
#include "runtime/exchange/json_text.h"
#include "runtime/exchange/sentencepiece_model.h"

namespace flashshard::exchange {
namespace {

using nlohmann::json;

constexpr int kBytes = 256;

bool is_printable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

std::string_view text_of(const data::MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void copy_file(const std::filesystem::path& from, const OutputFolder& output) {
  output.write_file(from.filename().string(), std::string(text_of(data::MappedFile(from))));
}

[[noreturn]] void damaged(const std::filesystem::path& path, std::string_view what) {
  throw Error(ExitCode::kBadData, fmt::format("bad tokenizer file: {}", what), path.string());
}

/// The token that the template for a single text begins with.
int32_t first_token(const json& processing, const std::filesystem::path& path) {
  const json& pieces = processing.at("single");
  if (!pieces.is_array() || pieces.empty() || !pieces[0].contains("SpecialToken")) {
    return data::kNoToken;
  }
  const auto name = pieces[0]["SpecialToken"].at("id").get<std::string>();
  const json& ids = processing.at("special_tokens").at(name).at("ids");
  if (!ids.is_array() || ids.size() != 1) return data::kNoToken;
  constexpr uint64_t kMost = std::numeric_limits<int32_t>::max();
  if (!ids[0].is_number_unsigned() || ids[0].get<uint64_t>() > kMost) {
    damaged(path, "post_processor: an id is no number of a token");
  }
  return ids[0].get<int32_t>();
}

void write_settings(const char* tokenizer_class, const nlohmann::ordered_json& special_tokens,
                    const OutputFolder& output) {
  nlohmann::ordered_json settings = {{"tokenizer_class", tokenizer_class},
                                     {"clean_up_tokenization_spaces", false},
                                     {"add_bos_token", false},
                                     {"add_eos_token", false}};
  if (!special_tokens.is_null()) settings.update(special_tokens);
  output.write_file(data::kHuggingFaceSettingsFile, settings.dump(2) + "\n");
}

/// What stands beside tokenizer.model: LlamaTokenizer alone reads such a file, and takes it for a
/// byte-pair model that leaves texts as they are and puts a space before them.
void write_sentencepiece(const data::TokenizerIdentity& identity, const std::filesystem::path& path,
                         const OutputFolder& output, std::vector<std::string>& warnings) {
  const proto::SentencePieceModel model = read_sentencepiece_model(path);
  const auto made = sentencepiece_tokenizer_json(model);
  if (!made) {
    write_settings("LlamaTokenizer", {}, output);
    warnings.emplace_back(
        "tokenizer.model is of a kind that tokenizer.json has no counterpart of: transformers will "
        "split texts differently");
    return;
  }
  output.write_file(data::kHuggingFaceFile, *made);
  nlohmann::ordered_json special_tokens;
  for (int id = 0; id < model.pieces_size(); ++id) {
    const auto& piece = model.pieces(id);
    if (piece.type() == static_cast<int32_t>(PieceType::kUnknown)) {
      special_tokens["unk_token"] = piece.piece();
    } else if (id == identity.end_of_document) {
      special_tokens["eos_token"] = piece.piece();
    }
  }
  write_settings("PreTrainedTokenizerFast", special_tokens, output);
}

/// True where tokenizer.json is what write_sentencepiece writes beside tokenizer.model.
bool is_made_of_sentencepiece(const std::filesystem::path& tokenizer_json,
                              const std::filesystem::path& model) {
  if (!std::filesystem::exists(model)) return false;
  try {
    const auto made = sentencepiece_tokenizer_json(read_sentencepiece_model(model));
    return made && text_of(data::MappedFile(tokenizer_json)) == *made;
  } catch (const Error&) {
    return false;  // other programs give other files that name
  }
}

}  // namespace

std::string byte_level_character(uint8_t byte) {
  int code = byte;
  if (!is_printable(byte)) {
    code = kBytes;
    for (int before = 0; before < byte; ++before) code += is_printable(before) ? 0 : 1;
  }
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

std::string byte_tokenizer_json() {
  nlohmann::ordered_json vocabulary;
  for (int byte = 0; byte < kBytes; ++byte) {
    vocabulary[byte_level_character(static_cast<uint8_t>(byte))] = byte;
  }
  const nlohmann::ordered_json byte_level = {{"type", "ByteLevel"},
                                             {"add_prefix_space", false},
                                             {"trim_offsets", true},
                                             {"use_regex", false}};
  nlohmann::ordered_json json = {
      {"version", "1.0"},          {"truncation", nullptr},
      {"padding", nullptr},        {"added_tokens", nlohmann::ordered_json::array()},
      {"normalizer", nullptr},     {"pre_tokenizer", byte_level},
      {"post_processor", nullptr}, {"decoder", byte_level}};
  json["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"vocab", vocabulary},
                   {"merges", nlohmann::ordered_json::array()}};
  return json.dump(1) + "\n";
}

std::vector<std::string> write_tokenizer_files(const data::TokenizerIdentity& identity,
                                               const std::filesystem::path& from,
                                               const OutputFolder& output) {
  std::vector<std::string> warnings;
  if (identity.kind == "byte") {
    output.write_file(data::kHuggingFaceFile, byte_tokenizer_json());
    write_settings("PreTrainedTokenizerFast", {}, output);
  } else if (identity.kind == "sentencepiece") {
    require_tokenizer_file(identity, from / data::kSentencePieceFile);
    copy_file(from / data::kSentencePieceFile, output);
    write_sentencepiece(identity, from / data::kSentencePieceFile, output, warnings);
  } else if (identity.kind == "hf") {
    require_tokenizer_file(identity, from / data::kHuggingFaceFile);
    copy_file(from / data::kHuggingFaceFile, output);
    if (std::filesystem::exists(from / data::kHuggingFaceSettingsFile)) {
      copy_file(from / data::kHuggingFaceSettingsFile, output);
    } else {
      write_settings("PreTrainedTokenizerFast", {}, output);
    }
  } else {
    throw Error(ExitCode::kBadData,
                fmt::format("{} shards do not say how their tokens were made", identity.kind), "",
                "leave the tokenizer out with --no-tokenizer");
  }
  return warnings;
}

void require_tokenizer_file(const data::TokenizerIdentity& identity,
                            const std::filesystem::path& path) {
  const data::MappedFile file(path);
  if (XXH3_64bits(file.bytes().data(), file.bytes().size()) == identity.hash) return;
  throw Error(ExitCode::kBadData, "this is another tokenizer than the checkpoint's", path.string(),
              "put the right file back, or leave it out with --no-tokenizer");
}

int32_t beginning_of_text(const std::filesystem::path& tokenizer_json) {
  const data::MappedFile file(tokenizer_json);
  const auto tokenizer = parse_json(text_of(file));
  if (!tokenizer || !tokenizer->is_object()) damaged(tokenizer_json, "it is no JSON object");
  try {
    const json processor = tokenizer->value("post_processor", json());
    if (processor.is_null()) return data::kNoToken;
    const json steps =
        processor.at("type") == "Sequence" ? processor.at("processors") : json::array({processor});
    for (const json& step : steps) {
      if (step.at("type") == "TemplateProcessing") return first_token(step, tokenizer_json);
    }
    return data::kNoToken;
  } catch (const json::exception& error) {
    damaged(tokenizer_json, error.what());
  }
}

std::optional<data::TokenizerIdentity> identify_tokenizer(const std::filesystem::path& folder) {
  const auto json = folder / data::kHuggingFaceFile;
  const auto model = folder / data::kSentencePieceFile;
  if (std::filesystem::exists(json) && !is_made_of_sentencepiece(json, model)) {
    if (text_of(data::MappedFile(json)) == byte_tokenizer_json()) {
      return data::make_tokenizer("byte")->identity();
    }
    return data::make_tokenizer("hf:" + folder.string())->identity();
  }
  if (!std::filesystem::exists(model)) return std::nullopt;
  return data::make_tokenizer("sentencepiece:" + model.string())->identity();
}

}  // namespace flashshard::exchange
