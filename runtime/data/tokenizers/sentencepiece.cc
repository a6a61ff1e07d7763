// flashshard-sentencepiece MODEL: a SentencePiece model behind the tokenizer protocol of
// docs/data.md on stdin and stdout. A program of its own, because libsentencepiece exports symbols
// of the protobuf that it carries, which would meet the real one's in a program that links both.
#include <sentencepiece_processor.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr uint32_t kGreeting = 0x314b5446;  // "FTK1"
constexpr uint32_t kLongestMessage = 4096;  // bytes of an error's text

// The other side is gone: nobody is left to tell.
[[noreturn]] void end() { std::exit(0); }

void read_bytes(void* bytes, size_t size) {
  if (size > 0 && std::fread(bytes, 1, size, stdin) != size) end();
}

uint32_t read_number() {
  uint32_t number = 0;
  read_bytes(&number, sizeof(number));
  return number;
}

void write_bytes(const void* bytes, size_t size) {
  if (size > 0 && std::fwrite(bytes, 1, size, stdout) != size) end();
}

void write_number(uint32_t number) { write_bytes(&number, sizeof(number)); }

// `kind`: 'd' the data is bad, 'u' the tokenizer cannot be used here.
void write_error(char kind, std::string message) {
  message.resize(std::min<size_t>(message.size(), kLongestMessage));
  write_bytes(&kind, 1);
  write_number(static_cast<uint32_t>(message.size()));
  write_bytes(message.data(), message.size());
}

void encode(const sentencepiece::SentencePieceProcessor& processor) {
  std::vector<std::string> texts(read_number());
  for (std::string& text : texts) {
    text.resize(read_number());
    read_bytes(text.data(), text.size());
  }
  std::vector<std::vector<int>> all(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto status = processor.Encode(texts[i], &all[i]);
    if (!status.ok()) return write_error('d', status.ToString());
  }
  write_bytes("+", 1);
  for (const auto& tokens : all) {
    write_number(static_cast<uint32_t>(tokens.size()));
    write_bytes(tokens.data(), tokens.size() * sizeof(int));
  }
}

void decode(const sentencepiece::SentencePieceProcessor& processor) {
  std::vector<int> tokens(read_number());
  read_bytes(tokens.data(), tokens.size() * sizeof(int));
  for (const int token : tokens) {
    if (token < 0 || token >= processor.GetPieceSize()) {
      return write_error('d', "token id " + std::to_string(token) + " is outside the vocabulary");
    }
  }
  std::string text;
  const auto status = processor.Decode(tokens, &text);
  if (!status.ok()) return write_error('d', status.ToString());
  write_bytes("+", 1);
  write_number(static_cast<uint32_t>(text.size()));
  write_bytes(text.data(), text.size());
}

}  // namespace

int main(int argc, char** argv) {
  static_assert(sizeof(int) == sizeof(int32_t));
  if (argc != 2) {
    std::fprintf(stderr, "usage: flashshard-sentencepiece MODEL (started by flashshard)\n");
    return 2;
  }
  sentencepiece::SentencePieceProcessor processor;
  if (!processor.Load(argv[1]).ok()) {
    write_error('d', "is not a SentencePiece model");
    return std::fflush(stdout);
  }
  if (processor.eos_id() < 0) {
    write_error('d', "this SentencePiece model has no end-of-sentence piece to end documents with");
    return std::fflush(stdout);
  }
  write_bytes("+", 1);
  write_number(kGreeting);
  write_number(static_cast<uint32_t>(processor.GetPieceSize()));
  write_number(static_cast<uint32_t>(processor.eos_id()));
  for (;;) {
    if (std::fflush(stdout) != 0) end();
    char request = 0;
    read_bytes(&request, 1);
    if (request == 'E') {
      encode(processor);
    } else if (request == 'D') {
      decode(processor);
    } else {
      std::fprintf(stderr, "a request outside the protocol\n");
      return 1;
    }
  }
}
