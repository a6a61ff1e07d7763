// Text to token ids and back. Bytes are done here; SentencePiece and Hugging Face tokenizers run in
// a process of their own (tokenizer_process.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flashshard::data {

inline constexpr int32_t kNoToken = -1;

/// What a data set and a checkpoint say about their tokenizer. Equal kind, hash and vocabulary mean
/// equal ids for equal text.
struct TokenizerIdentity {
  std::string kind = "byte";           // byte, sentencepiece, hf; of foreign data llm.c, megatron
  uint64_t hash = 0;                   // XXH3-64 of the model file; 0 without one
  int64_t vocab_size = 256;            // every id is below it
  int32_t end_of_document = kNoToken;  // the token after each document, if there is one

  /// One line, "sentencepiece 0123456789abcdef 32000 2", that parse_identity reads back.
  std::string text() const;
  bool has_model_file() const { return kind == "sentencepiece" || kind == "hf"; }
  bool is_known() const { return kind == "byte" || has_model_file(); }
  bool same_ids(const TokenizerIdentity& other) const {
    return kind == other.kind && hash == other.hash && vocab_size == other.vocab_size;
  }
  bool operator==(const TokenizerIdentity&) const = default;
};

/// Nothing for a line of another form.
std::optional<TokenizerIdentity> parse_identity(std::string_view line);

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  virtual const TokenizerIdentity& identity() const = 0;
  /// The ids of each text, without special tokens around them. Throws Error(kBadData).
  virtual std::vector<std::vector<int32_t>> encode(std::span<const std::string_view> texts) = 0;
  /// Throws Error(kBadData) for an id outside the vocabulary.
  virtual std::string decode(std::span<const int32_t> tokens) = 0;
  /// What another machine needs to make this tokenizer again; empty for bytes.
  virtual std::vector<std::filesystem::path> files() const = 0;

 protected:
  Tokenizer() = default;
};

/// A token is a byte. Text has no byte 0, so byte 0 ends a document.
class ByteTokenizer : public Tokenizer {
 public:
  ByteTokenizer() { identity_.end_of_document = 0; }
  const TokenizerIdentity& identity() const override { return identity_; }
  std::vector<std::vector<int32_t>> encode(std::span<const std::string_view> texts) override;
  std::string decode(std::span<const int32_t> tokens) override;
  std::vector<std::filesystem::path> files() const override { return {}; }

 private:
  TokenizerIdentity identity_;
};

/// How long a tokenizer's process may take for one answer.
inline constexpr std::chrono::seconds kTokenizerDeadline{120};

/// `name`: "byte", "sentencepiece:MODEL" or "hf:FOLDER" (a folder with tokenizer.json). Throws
/// Error: kUsage (another name, a program that is not there), kBadData (the file).
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name);

/// The tokenizer whose files save_tokenizer_files put into `folder`; compared with `identity`.
/// Throws Error(kBadData, kUsage).
std::unique_ptr<Tokenizer> open_tokenizer(const TokenizerIdentity& identity,
                                          const std::filesystem::path& folder);

/// Names that a tokenizer's files have in a data folder and in a run's folder.
inline constexpr const char* kSentencePieceFile = "tokenizer.model";
inline constexpr const char* kHuggingFaceFile = "tokenizer.json";
inline constexpr const char* kHuggingFaceSettingsFile = "tokenizer_config.json";
bool is_tokenizer_file(std::string_view name);
/// Copies what of a tokenizer lies in `from` to `to`, which is made when it is missing. Throws like
/// OutputFile and MappedFile.
void save_tokenizer_files(const std::filesystem::path& from, const std::filesystem::path& to);
/// The name of `file`, one of Tokenizer::files(), in such a folder.
std::string tokenizer_file_name(const TokenizerIdentity& identity,
                                const std::filesystem::path& file);

/// Text of a growing list of tokens, in whole characters: what a person sees while it is written.
class TextStream {
 public:
  /// `context`: tokens that stand before, of which no text is shown.
  TextStream(Tokenizer& tokenizer, std::span<const int32_t> context);
  /// The text that this token completes; empty in the middle of a character.
  std::string push(int32_t token);
  /// What is left when no token follows: an unfinished character as it is.
  std::string finish();

 private:
  std::string take(bool unfinished);
  std::span<const int32_t> tail(std::span<const int32_t> tokens);

  Tokenizer& tokenizer_;
  std::vector<int32_t> tokens_;  // a few that are shown, then those that are not
  size_t shown_ = 0;             // of tokens_
};

}  // namespace flashshard::data
