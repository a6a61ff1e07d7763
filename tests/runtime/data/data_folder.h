// What the tests of runtime/data share: a folder that lives for one test, files in it, and data
// sets made by hand.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/error.h"
#include "runtime/data/dataset_manifest.h"
#include "runtime/data/token_shard.h"

namespace flashshard::data {

class DataFolder {
 public:
  DataFolder() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "flashshard-data-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~DataFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  DataFolder(const DataFolder&) = delete;
  DataFolder& operator=(const DataFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void write_file(const std::filesystem::path& path, std::string_view content) {
  std::ofstream(path, std::ios::binary) << content;
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

/// Names in a folder, sorted.
inline std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// Bytes that repeat only after 2^32: a shifted or swapped read shows. Byte 0 ends documents and is
/// not among them.
inline std::string text_of(size_t bytes) {
  std::string text(bytes, '\0');
  uint32_t state = 1;
  for (char& c : text) {
    state = state * 1664525u + 1013904223u;
    c = static_cast<char>(state >> 24);
    if (c == '\0') c = '\1';
  }
  return text;
}

template <typename Token>
ShardHeader write_shard(const std::filesystem::path& path, const std::vector<Token>& tokens,
                        uint32_t vocab_size) {
  ShardWriter writer({.path = path, .token_bytes = sizeof(Token), .vocab_size = vocab_size});
  writer.append(std::as_bytes(std::span(tokens)));
  return writer.finish();
}

/// A data folder whose splits are cut into the shards given.
template <typename Token>
void write_dataset(const std::filesystem::path& folder,
                   const std::vector<std::vector<Token>>& train_shards,
                   const std::vector<std::vector<Token>>& validation_shards = {},
                   uint32_t vocab_size = 256) {
  DatasetManifest manifest;
  manifest.vocab_size = vocab_size;
  manifest.token_bytes = sizeof(Token);
  const auto write = [&](Split split, const std::vector<std::vector<Token>>& shards,
                         std::vector<ShardRecord>& records) {
    for (const auto& tokens : shards) {
      const auto index = static_cast<int64_t>(records.size());
      const ShardHeader header =
          write_shard(folder / shard_file_name(split, index), tokens, vocab_size);
      records.push_back({.tokens = static_cast<int64_t>(header.token_count),
                         .payload_hash = header.payload_hash});
    }
  };
  write(Split::kTrain, train_shards, manifest.train);
  write(Split::kValidation, validation_shards, manifest.validation);
  write_manifest(folder, manifest);
}

/// 0, 1, 2, ...
template <typename Token>
std::vector<Token> counting(size_t count, size_t first = 0) {
  std::vector<Token> tokens(count);
  for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<Token>(first + i);
  return tokens;
}

/// The Error that `action` throws, as "<exit code>: <message>"; "nothing thrown" otherwise.
template <typename Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return std::to_string(static_cast<int>(error.code())) + ": " + error.what();
  }
  return "nothing thrown";
}

}  // namespace flashshard::data
