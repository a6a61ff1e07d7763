// dataset.json: what a prepared folder holds. It is written last, so a folder without it is an
// unfinished one. The fields stand in docs/data.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "runtime/data/tokenizer.h"

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

/// What a split holds, in all its shards. Zeros where nobody counted: data sets of format version 1
/// and other programs' files.
struct SplitTotals {
  int64_t documents = 0;
  int64_t text_bytes = 0;  // of the text whose tokens count in the loss
  int64_t counted = 0;     // tokens that count in the loss, end-of-document tokens included

  bool operator==(const SplitTotals&) const = default;
};

struct DatasetManifest {
  std::string tokenizer = "byte";
  uint32_t vocab_size = 256;
  uint32_t token_bytes = 1;
  uint64_t tokenizer_hash = 0;         // as in TokenizerIdentity
  int32_t end_of_document = kNoToken;  // as in TokenizerIdentity
  bool loss_mask = false;              // shards say of every token whether it counts
  SplitTotals train_totals;
  SplitTotals validation_totals;
  double validation_fraction = 0;
  int64_t validation_block_tokens = 0;
  std::vector<ShardRecord> train;
  std::vector<ShardRecord> validation;
  std::vector<SourceRecord> sources;

  const std::vector<ShardRecord>& shards(Split split) const {
    return split == Split::kTrain ? train : validation;
  }
  int64_t token_count(Split split) const;
  SplitTotals& totals(Split split) {
    return split == Split::kTrain ? train_totals : validation_totals;
  }
  const SplitTotals& totals(Split split) const {
    return split == Split::kTrain ? train_totals : validation_totals;
  }
  /// Bytes of text for each token that counts in the loss; nothing where they are unknown.
  std::optional<double> bytes_per_token(Split split) const;
  TokenizerIdentity identity() const {
    return {tokenizer, tokenizer_hash, vocab_size, end_of_document};
  }
  void set_identity(const TokenizerIdentity& identity);
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
