// A tokenizer in a process of its own: a library that must not be linked into this program
// (libsentencepiece carries a protobuf of its own) or that speaks Python. The protocol stands in
// docs/data.md.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "runtime/data/file.h"
#include "runtime/data/tokenizer.h"

namespace flashshard::data {

class TokenizerProcess : public Tokenizer {
 public:
  struct Options {
    std::vector<std::string> command;  // program, looked up in PATH if it has no slash; arguments
    std::string kind;                  // of the identity
    std::vector<std::filesystem::path> files;  // the first one's hash goes into the identity
    std::string program_hint;                  // what to do when the program cannot be started
    std::chrono::duration<double> deadline = kTokenizerDeadline;  // of one answer
  };
  /// Starts the program and waits for its greeting. Throws Error: kUsage (the program cannot be
  /// started, or a package that it needs is missing), kBadData (the tokenizer's files), kInternal
  /// (no answer in time, an answer outside the protocol).
  explicit TokenizerProcess(Options options);
  /// Closes the connection, which ends the program; one that stays is killed.
  ~TokenizerProcess() override;

  const TokenizerIdentity& identity() const override { return identity_; }
  std::vector<std::vector<int32_t>> encode(std::span<const std::string_view> texts) override;
  std::string decode(std::span<const int32_t> tokens) override;
  std::vector<std::filesystem::path> files() const override { return options_.files; }

 private:
  void start();
  void greet();
  void send(std::string_view bytes);
  void receive(void* bytes, size_t size);
  uint32_t receive_number();
  std::string receive_text(size_t size);
  /// Those of a text of so many bytes.
  std::vector<int32_t> receive_tokens(size_t text_bytes);
  void expect_success();
  /// Throws for a program that is gone: its last words if it said any.
  [[noreturn]] void fail(const std::string& what);
  [[noreturn]] void fail_late();
  std::string last_words() const;

  Options options_;
  TokenizerIdentity identity_;
  FileDescriptor connection_;
  FileDescriptor errors_;  // what the program writes to stderr
  pid_t process_ = -1;
  std::chrono::steady_clock::time_point answer_due_;
};

/// `model`: a SentencePiece model file.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(const std::filesystem::path& model);
/// `folder`: holds tokenizer.json, and tokenizer_config.json if the end-of-document token is to be
/// read from there. Needs python3 with the package `tokenizers`.
std::unique_ptr<Tokenizer> make_hugging_face_tokenizer(const std::filesystem::path& folder);

}  // namespace flashshard::data
