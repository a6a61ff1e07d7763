// dataset.json: what a prepared folder holds. It is written last, so a folder without it is an
// unfinished one. The fields stand in docs/data.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace flashshard::data {

enum class Split { kTrain, kValidation };

/// "train" or "validation".
const char* split_name(Split split);

/// "train-00000.tokens".
std::string shard_file_name(Split split, int64_t index);

inline constexpr int64_t kMostShards = 100'000;  // five digits in a shard's name
inline constexpr const char* kManifestFileName = "dataset.json";

struct ShardRecord {
  int64_t tokens = 0;
  uint64_t payload_hash = 0;  // XXH3-64, as in the shard's header

  bool operator==(const ShardRecord&) const = default;
};

struct SourceRecord {
  std::string name;  // as given to prepare
  int64_t bytes = 0;
  uint64_t hash = 0;  // XXH3-64 of the whole file

  bool operator==(const SourceRecord&) const = default;
};

struct DatasetManifest {
  std::string tokenizer = "byte";
  uint32_t vocab_size = 256;
  uint32_t token_bytes = 1;
  double validation_fraction = 0;
  int64_t validation_block_tokens = 0;
  std::vector<ShardRecord> train;
  std::vector<ShardRecord> validation;
  std::vector<SourceRecord> sources;

  const std::vector<ShardRecord>& shards(Split split) const {
    return split == Split::kTrain ? train : validation;
  }
  int64_t token_count(Split split) const;
  /// Bytes of text that a token stands for, on the average of the split; empty where that is not
  /// known.
  std::optional<double> bytes_per_token(Split split) const;
  /// 16 hexadecimal digits that name the tokens and how they are cut into shards: equal
  /// fingerprints feed a run the same sequences. Names of sources play no part.
  std::string fingerprint() const;

  bool operator==(const DatasetManifest&) const = default;
};

/// Throws Error(kBadData): no such folder, unfinished folder, not ours, a field missing or out of
/// range.
DatasetManifest read_manifest(const std::filesystem::path& folder);

/// Replaces dataset.json in one step, durable on return. Throws like OutputFile.
void write_manifest(const std::filesystem::path& folder, const DatasetManifest& manifest);

}  // namespace flashshard::data
