// One split of a data set, read as one long text: shards are mapped, and a read may cross their
// boundaries. A data set is a prepared folder, or files of llm.c or Megatron as they are.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "runtime/data/dataset_manifest.h"
#include "runtime/data/token_shard.h"

namespace flashshard::data {

/// Where sequences of tokens go, each (sequences, sequence length).
struct SequenceBuffers {
  std::span<int32_t> inputs;
  std::span<int32_t> targets;
  /// Of every input the index in its sequence at which its document begins; empty: not wanted.
  std::span<int32_t> document_starts = {};

  /// `count` tokens of each from `first` on.
  SequenceBuffers part(size_t first, size_t count) const;
  bool have_size(size_t tokens) const;
};

/// Immutable; members may be called from several threads at once.
class TokenDataset {
 public:
  /// `path`: a prepared folder, whose shards are compared with dataset.json, or what
  /// is_foreign_data (foreign_data.h) recognises. Throws Error(kBadData): see read_manifest,
  /// TokenShard and foreign_data.h; also when the split is empty.
  static TokenDataset open(const std::filesystem::path& path, Split split,
                           PayloadCheck check = PayloadCheck::kHash);

  /// What an evaluation reads: the validation split, or all of a single file of another program.
  static TokenDataset open_for_evaluation(const std::filesystem::path& path);

  int64_t token_count() const { return starts_.back(); }
  int32_t vocab_size() const { return static_cast<int32_t>(manifest_.vocab_size); }
  const DatasetManifest& manifest() const { return manifest_; }
  const std::filesystem::path& folder() const { return folder_; }
  Split split() const { return split_; }

  /// Tokens [position, position + out.size()) of the split.
  /// Throws Error(kBadData): an id beyond the vocabulary (shard and position named), a shard
  /// truncated while in use. Throws Error(kInternal) for a range outside the split.
  void read(int64_t position, std::span<int32_t> out) const;
  /// Inputs: tokens from `position` on. Targets: as many from position + 1 on, -1 where the loss
  /// mask hides one. The document of the first input begins with it, whatever stood before. Throws
  /// like read(), and like require_documents() where starts are wanted.
  void read_window(int64_t position, const SequenceBuffers& buffers) const;
  /// Throws Error(kBadData) where nothing in the data tells one document from the next.
  void require_documents() const;

 private:
  TokenDataset(std::filesystem::path folder, Split split, DatasetManifest manifest);
  static TokenDataset open_prepared(const std::filesystem::path& folder, Split split,
                                    PayloadCheck check);
  void append(TokenShard shard);
  /// Calls action(shard, position in it, part of `out`) for each shard that the range touches.
  template <typename Action>
  void for_each_part(int64_t position, std::span<int32_t> out, const Action& action) const;
  void find_documents(int64_t position, const SequenceBuffers& buffers) const;

  std::filesystem::path folder_;
  Split split_;
  DatasetManifest manifest_;
  DocumentMark mark_;
  std::vector<TokenShard> shards_;
  std::vector<int64_t>
      starts_;  // (shards + 1): position of each shard's first token, then the token count
};

}  // namespace flashshard::data
