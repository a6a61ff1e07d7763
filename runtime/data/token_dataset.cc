#include "runtime/data/token_dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kernels/error.h"

namespace flashshard::data {

namespace {

void check_against_manifest(const TokenShard& shard, const DatasetManifest& manifest,
                            const ShardRecord& record) {
  const ShardHeader expected = {.token_bytes = manifest.token_bytes,
                                .vocab_size = manifest.vocab_size,
                                .token_count = static_cast<uint64_t>(record.tokens),
                                .payload_hash = record.payload_hash};
  if (shard.header() != expected) {
    throw Error(ExitCode::kBadData,
                "token shard differs from what dataset.json says: it belongs to another data set",
                shard.path().string(), "prepare the data again with `flashshard prepare`");
  }
}

}  // namespace

TokenDataset::TokenDataset(std::filesystem::path folder, Split split, DatasetManifest manifest)
    : folder_(std::move(folder)), split_(split), manifest_(std::move(manifest)), starts_{0} {}

TokenDataset TokenDataset::open(const std::filesystem::path& folder, Split split,
                                PayloadCheck check) {
  TokenDataset dataset(folder, split, read_manifest(folder));
  for (const ShardRecord& record : dataset.manifest_.shards(split)) {
    const auto index = static_cast<int64_t>(dataset.shards_.size());
    dataset.shards_.emplace_back(folder / shard_file_name(split, index), check);
    check_against_manifest(dataset.shards_.back(), dataset.manifest_, record);
    dataset.starts_.push_back(dataset.starts_.back() + record.tokens);
  }
  if (dataset.shards_.empty()) {
    throw Error(ExitCode::kBadData, fmt::format("data set has no {} tokens", split_name(split)),
                folder.string(),
                split == Split::kValidation ? "prepare it with a validation fraction above 0"
                                            : "prepare the data again with `flashshard prepare`");
  }
  return dataset;
}

void TokenDataset::read(int64_t position, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  if (position < 0 || position > token_count() || count > token_count() - position) {
    throw Error(ExitCode::kInternal,
                fmt::format("tokens {} to {} asked for, there are {}", position, position + count,
                            token_count()),
                folder_.string());
  }
  auto shard = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), position) -
                                   starts_.begin() - 1);
  while (!out.empty()) {
    const int64_t in_shard = position - starts_[shard];
    const auto part =
        out.first(std::min(out.size(), static_cast<size_t>(starts_[shard + 1] - position)));
    shards_[shard].read(static_cast<uint64_t>(in_shard), part);
    position += static_cast<int64_t>(part.size());
    out = out.subspan(part.size());
    ++shard;
  }
}

}  // namespace flashshard::data
