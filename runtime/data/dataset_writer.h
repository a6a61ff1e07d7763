// Tokens of documents to the shards of both splits of a prepared folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "runtime/data/dataset_manifest.h"
#include "runtime/data/prepared_folder.h"
#include "runtime/data/token_shard.h"
#include "runtime/data/tokenizer.h"

namespace flashshard::data {

/// Cuts the token stream of one split into shards.
class SplitWriter {
 public:
  struct Options {
    Split split = Split::kTrain;
    int64_t shard_tokens = 0;
    TokenizerIdentity tokenizer;
    bool loss_mask = false;
  };
  SplitWriter(const PreparedFolder& folder, const Options& options);

  /// `tokens` as in ShardWriter::append; they stand for `text_bytes` bytes of text.
  void append(std::span<const std::byte> tokens, Counted counted, int64_t text_bytes);
  /// Ids within the vocabulary.
  void append(std::span<const int32_t> tokens, Counted counted, int64_t text_bytes);
  /// Appends the end-of-document token, which counts.
  void end_document();
  /// Closes the last shard and puts the split's records and totals into the manifest.
  void finish(DatasetManifest& manifest);

 private:
  void open_shard();
  void close_shard();

  const PreparedFolder& folder_;
  Options options_;
  uint32_t token_bytes_;
  std::optional<ShardWriter> shard_;
  std::vector<ShardRecord> records_;
  SplitTotals totals_;
};

/// Bytes of a token of this vocabulary in a shard: 1, 2 or 4.
uint32_t token_bytes_of(int64_t vocab_size);

/// Both splits of one data set.
class DatasetWriter {
 public:
  struct Options {
    int64_t shard_tokens = 0;
    TokenizerIdentity tokenizer;
    bool loss_mask = false;
  };
  DatasetWriter(const PreparedFolder& folder, const Options& options)
      : train_(folder, {Split::kTrain, options.shard_tokens, options.tokenizer, options.loss_mask}),
        validation_(folder, {Split::kValidation, options.shard_tokens, options.tokenizer,
                             options.loss_mask}) {}

  SplitWriter& split(Split split) { return split == Split::kTrain ? train_ : validation_; }
  void finish(DatasetManifest& manifest) {
    train_.finish(manifest);
    validation_.finish(manifest);
  }

 private:
  SplitWriter train_;
  SplitWriter validation_;
};

}  // namespace flashshard::data
