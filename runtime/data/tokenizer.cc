#include "runtime/data/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "kernels/error.h"
#include "runtime/data/file.h"
#include "runtime/data/tokenizer_process.h"

namespace flashshard::data {
namespace {

constexpr size_t kContextTokens = 8;  // shown ones that the next token's text may depend on
constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD

template <typename Number>
bool read_number(std::string_view text, Number& value, int base) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return result.ec == std::errc() && result.ptr == text.data() + text.size();
}

}  // namespace

std::string TokenizerIdentity::text() const {
  return fmt::format("{} {:016x} {} {}", kind, hash, vocab_size, end_of_document);
}

std::optional<TokenizerIdentity> parse_identity(std::string_view line) {
  std::array<std::string_view, 4> words;
  for (size_t i = 0; i < words.size(); ++i) {
    const size_t end = std::min(line.find(' '), line.size());
    words[i] = line.substr(0, end);
    line.remove_prefix(std::min(end + 1, line.size()));
  }
  TokenizerIdentity identity;
  identity.kind = words[0];
  if (identity.kind.empty() || !line.empty() || !read_number(words[1], identity.hash, 16) ||
      !read_number(words[2], identity.vocab_size, 10) ||
      !read_number(words[3], identity.end_of_document, 10)) {
    return std::nullopt;
  }
  return identity;
}

std::vector<std::vector<int32_t>> ByteTokenizer::encode(std::span<const std::string_view> texts) {
  std::vector<std::vector<int32_t>> all;
  all.reserve(texts.size());
  for (const std::string_view text : texts) {
    if (const size_t zero = text.find('\0'); zero != std::string_view::npos) {
      throw Error(ExitCode::kBadData, fmt::format("text has a byte 0 at position {}", zero), "",
                  "byte 0 ends a document where tokens are bytes: remove it, or use a tokenizer");
    }
    auto& tokens = all.emplace_back();
    tokens.reserve(text.size());
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  }
  return all;
}

std::string ByteTokenizer::decode(std::span<const int32_t> tokens) {
  std::string text;
  for (const int32_t token : tokens) {
    if (token < 0 || token >= identity_.vocab_size) {
      throw Error(ExitCode::kBadData, fmt::format("token id {} is no byte", token));
    }
    text.push_back(static_cast<char>(token));
  }
  return text;
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name) {
  constexpr std::string_view kSentencePiece = "sentencepiece:";
  constexpr std::string_view kHuggingFace = "hf:";
  if (name == "byte") return std::make_unique<ByteTokenizer>();
  if (name.starts_with(kSentencePiece) && name.size() > kSentencePiece.size()) {
    return make_sentencepiece_tokenizer(name.substr(kSentencePiece.size()));
  }
  if (name.starts_with(kHuggingFace) && name.size() > kHuggingFace.size()) {
    return make_hugging_face_tokenizer(name.substr(kHuggingFace.size()));
  }
  throw Error(ExitCode::kUsage, fmt::format("unknown tokenizer `{}`", name), "--tokenizer",
              "give byte, sentencepiece:MODEL or hf:FOLDER");
}

std::unique_ptr<Tokenizer> open_tokenizer(const TokenizerIdentity& identity,
                                          const std::filesystem::path& folder) {
  if (identity.kind == "byte") return std::make_unique<ByteTokenizer>();
  if (!identity.has_model_file()) {
    throw Error(ExitCode::kUsage,
                fmt::format("{} shards do not say how their tokens were made", identity.kind), "",
                "name the tokenizer with --tokenizer");
  }
  auto tokenizer = identity.kind == "hf"
                       ? make_hugging_face_tokenizer(folder)
                       : make_sentencepiece_tokenizer(folder / kSentencePieceFile);
  if (!tokenizer->identity().same_ids(identity)) {
    throw Error(ExitCode::kBadData, "this is another tokenizer than the one that made the tokens",
                folder.string(), "put the right files back, or name them with --tokenizer");
  }
  return tokenizer;
}

bool is_tokenizer_file(std::string_view name) {
  return name == kSentencePieceFile || name == kHuggingFaceFile || name == kHuggingFaceSettingsFile;
}

std::string tokenizer_file_name(const TokenizerIdentity& identity,
                                const std::filesystem::path& file) {
  return identity.kind == "sentencepiece" ? kSentencePieceFile : file.filename().string();
}

void save_tokenizer_files(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code error;
  std::filesystem::create_directories(to, error);
  if (error) throw_write_error(error.value(), "create folder", to);
  for (const char* name : {kSentencePieceFile, kHuggingFaceFile, kHuggingFaceSettingsFile}) {
    if (!std::filesystem::exists(from / name)) continue;
    const MappedFile content(from / name);
    const std::filesystem::path temporary = to / fmt::format("{}.tmp", name);
    OutputFile copy(temporary);
    copy.append(content.bytes());
    copy.commit();
    rename_file(temporary, to / name);
  }
  sync_folder(to);
}

TextStream::TextStream(Tokenizer& tokenizer, std::span<const int32_t> context)
    : tokenizer_(tokenizer) {
  const auto last = tail(context);
  tokens_.assign(last.begin(), last.end());
  shown_ = tokens_.size();
}

/// The last few tokens, from the beginning of a character: a tokenizer that falls back to bytes
/// decodes a run of them to replacement characters when its first character is cut.
std::span<const int32_t> TextStream::tail(std::span<const int32_t> tokens) {
  constexpr size_t kLongestCharacter = 4;
  for (size_t n = kContextTokens; n < kContextTokens + kLongestCharacter && n <= tokens.size();
       ++n) {
    if (!tokenizer_.decode(tokens.last(n)).starts_with(kReplacementCharacter)) {
      return tokens.last(n);
    }
  }
  return tokens.last(std::min(tokens.size(), kContextTokens));
}

std::string TextStream::take(bool unfinished) {
  // A token's text may depend on those before it (a leading space, half a character), so both lists
  // are decoded and the difference is what is new.
  const std::string before = tokenizer_.decode(std::span(tokens_).first(shown_));
  const std::string now = tokenizer_.decode(tokens_);
  if (now.size() <= before.size()) return {};
  if (!unfinished && now.ends_with(kReplacementCharacter)) return {};
  shown_ = tokens_.size();
  if (shown_ > 2 * kContextTokens) {
    const auto kept = static_cast<std::ptrdiff_t>(tail(tokens_).size());
    tokens_.erase(tokens_.begin(), tokens_.end() - kept);
    shown_ = tokens_.size();
  }
  return now.substr(before.size());
}

std::string TextStream::push(int32_t token) {
  tokens_.push_back(token);
  return take(/*unfinished=*/false);
}

std::string TextStream::finish() { return take(/*unfinished=*/true); }

}  // namespace flashshard::data
