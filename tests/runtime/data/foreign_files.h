// Bytes of other programs' token files: shards of llm.c, index files of Megatron-LM.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace flashshard::data {

template <typename T>
void append_bytes(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

template <typename Token>
std::string token_bytes(const std::vector<Token>& tokens) {
  return {reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(Token)};
}

// The header as llm.c's dev/data scripts write it: 256 int32 words.
inline std::string llmc_header(int32_t magic, int32_t version, int32_t tokens) {
  std::string bytes;
  append_bytes(bytes, magic);
  append_bytes(bytes, version);
  append_bytes(bytes, tokens);
  bytes.resize(1024);
  return bytes;
}

inline std::string llmc_gpt2(const std::vector<uint16_t>& tokens) {
  return llmc_header(20240520, 1, static_cast<int32_t>(tokens.size())) + token_bytes(tokens);
}

struct Index {
  std::string magic = std::string("MMIDIDX\0\0", 9);
  uint64_t version = 1;
  uint8_t type = 8;
  uint32_t token_bytes = 2;
  std::vector<int32_t> sizes = {5, 2, 3};
  std::vector<int64_t> documents = {0, 2, 3};

  std::string bytes() const {
    std::string out = magic;
    append_bytes(out, version);
    append_bytes(out, type);
    append_bytes(out, uint64_t{sizes.size()});
    append_bytes(out, uint64_t{documents.size()});
    for (const int32_t size : sizes) append_bytes(out, size);
    int64_t offset = 0;
    for (const int32_t size : sizes) {
      append_bytes(out, offset);
      offset += int64_t{size} * token_bytes;
    }
    for (const int64_t first : documents) append_bytes(out, first);
    return out;
  }
};

}  // namespace flashshard::data
