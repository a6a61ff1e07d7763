// Text or JSONL files to a folder of token shards: tokenizer, validation split, loss mask. The
// rules stand in docs/data.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "runtime/data/dataset_manifest.h"
#include "runtime/data/tokenizer.h"

namespace flashshard::data {

struct PrepareOptions {
  std::vector<std::filesystem::path> inputs;   // read in this order, as one text
  std::filesystem::path output;                // empty, absent, or an earlier output of prepare
  std::string tokenizer = "byte";              // as in make_tokenizer
  std::vector<std::string> jsonl_fields = {};  // empty: text; one: JSONL documents; two: pairs
  double validation_fraction = 0.05;           // of the bytes or documents, held out; 0 to 0.5
  int64_t shard_tokens = int64_t{1} << 28;     // most tokens in one shard
  std::function<void(int64_t done, int64_t total)> progress;  // bytes read so far; may be empty
};

struct PrepareReport {
  int64_t input_bytes = 0;
  int64_t train_tokens = 0;
  int64_t validation_tokens = 0;
  int64_t train_shards = 0;
  int64_t validation_shards = 0;
  int64_t validation_block_tokens = 0;  // bytes of one held-out block; 0: whole documents
  SplitTotals train_totals;
  SplitTotals validation_totals;
  TokenizerIdentity tokenizer;
  std::string fingerprint;  // of the data set, as in dataset.json
};

/// Which bytes of a text are held out. The text is cut into blocks; with F = fraction, block b
/// (from 0) is held out iff floor((b + 1) F + 1/2) > floor(b F + 1/2): the middle one of each run
/// of 1 / F blocks.
class HeldOutBlocks {
 public:
  /// `fraction` is used to six decimals. Throws Error(kUsage) outside 0 to 0.5, Error(kBadData)
  /// when the text is too short for one held-out byte.
  HeldOutBlocks(int64_t total_bytes, double fraction);

  /// About 32 blocks, but none shorter than 1024 bytes (or the whole share, if less) or longer than
  /// 16384.
  int64_t block_bytes() const { return block_bytes_; }
  bool is_held_out(int64_t block) const;
  Split split_of(int64_t block) const {
    return is_held_out(block) ? Split::kValidation : Split::kTrain;
  }

 private:
  int64_t parts_per_million_;
  int64_t block_bytes_;
};

/// Streams the inputs into shards; an earlier data set stays in place until the new one is
/// complete. Throws Error: kBadData (an input missing, empty, unreadable, changed meanwhile, given
/// twice; too little text; not UTF-8 where the tokenizer wants it; a line that is no JSON object
/// with the fields), kUsage (options; a folder that holds other files), kOutOfSpace, and what
/// make_tokenizer throws.
PrepareReport prepare(const PrepareOptions& options);

}  // namespace flashshard::data
