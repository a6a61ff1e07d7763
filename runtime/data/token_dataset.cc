#include "runtime/data/token_dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kernels/error.h"
#include "runtime/data/foreign_data.h"

namespace flashshard::data {

namespace {

void check_against_manifest(const TokenShard& shard, const DatasetManifest& manifest,
                            const ShardRecord& record) {
  const ShardHeader expected = {.token_bytes = manifest.token_bytes,
                                .vocab_size = manifest.vocab_size,
                                .token_count = static_cast<uint64_t>(record.tokens),
                                .payload_hash = record.payload_hash,
                                .loss_mask = manifest.loss_mask};
  if (shard.header() != expected) {
    throw Error(ExitCode::kBadData,
                "token shard differs from what dataset.json says: it belongs to another data set",
                shard.path().string(), "prepare the data again with `flashshard prepare`");
  }
}

}  // namespace

TokenDataset::TokenDataset(std::filesystem::path folder, Split split, DatasetManifest manifest)
    : folder_(std::move(folder)),
      split_(split),
      manifest_(std::move(manifest)),
      mark_{.token = manifest_.end_of_document},
      starts_{0} {}

SequenceBuffers SequenceBuffers::part(size_t first, size_t count) const {
  return {inputs.subspan(first, count), targets.subspan(first, count),
          document_starts.empty() ? document_starts : document_starts.subspan(first, count)};
}

bool SequenceBuffers::have_size(size_t tokens) const {
  return inputs.size() == tokens && targets.size() == tokens &&
         (document_starts.empty() || document_starts.size() == tokens);
}

void TokenDataset::append(TokenShard shard) {
  starts_.push_back(starts_.back() + static_cast<int64_t>(shard.header().token_count));
  shards_.push_back(std::move(shard));
}

TokenDataset TokenDataset::open_prepared(const std::filesystem::path& folder, Split split,
                                         PayloadCheck check) {
  TokenDataset dataset(folder, split, read_manifest(folder));
  for (const ShardRecord& record : dataset.manifest_.shards(split)) {
    const auto index = static_cast<int64_t>(dataset.shards_.size());
    TokenShard shard(folder / shard_file_name(split, index), check);
    check_against_manifest(shard, dataset.manifest_, record);
    dataset.append(std::move(shard));
  }
  return dataset;
}

TokenDataset TokenDataset::open(const std::filesystem::path& path, Split split,
                                PayloadCheck check) {
  const bool foreign = is_foreign_data(path);
  TokenDataset dataset = [&] {
    if (!foreign) return open_prepared(path, split, check);
    ForeignData data = open_foreign_data(path, split);
    TokenDataset opened(path, split, std::move(data.manifest));
    opened.mark_ = data.mark;
    for (TokenShard& shard : data.shards) opened.append(std::move(shard));
    return opened;
  }();
  if (dataset.shards_.empty()) {
    const char* const hint =
        foreign ? "name a folder that holds training files and files with `_val` in their names"
        : split == Split::kValidation ? "prepare it with a validation fraction above 0"
                                      : "prepare the data again with `flashshard prepare`";
    throw Error(ExitCode::kBadData, fmt::format("data set has no {} tokens", split_name(split)),
                path.string(), hint);
  }
  return dataset;
}

TokenDataset TokenDataset::open_for_evaluation(const std::filesystem::path& path) {
  const bool one_file = is_foreign_data(path) && !std::filesystem::is_directory(path);
  return open(path, one_file ? Split::kTrain : Split::kValidation);
}

template <typename Action>
void TokenDataset::for_each_part(int64_t position, std::span<int32_t> out,
                                 const Action& action) const {
  auto shard = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), position) -
                                   starts_.begin() - 1);
  while (!out.empty()) {
    const int64_t in_shard = position - starts_[shard];
    const auto part =
        out.first(std::min(out.size(), static_cast<size_t>(starts_[shard + 1] - position)));
    action(shards_[shard], static_cast<uint64_t>(in_shard), part);
    position += static_cast<int64_t>(part.size());
    out = out.subspan(part.size());
    ++shard;
  }
}

void TokenDataset::read(int64_t position, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  if (position < 0 || position > token_count() || count > token_count() - position) {
    throw Error(ExitCode::kInternal,
                fmt::format("tokens {} to {} asked for, there are {}", position, position + count,
                            token_count()),
                folder_.string());
  }
  for_each_part(position, out,
                [](const TokenShard& shard, uint64_t at, auto part) { shard.read(at, part); });
}

void TokenDataset::read_window(int64_t position, const SequenceBuffers& buffers) const {
  read(position, buffers.inputs);
  read(position + 1, buffers.targets);
  if (!buffers.document_starts.empty()) find_documents(position, buffers);
  if (!manifest_.loss_mask) return;
  for_each_part(position + 1, buffers.targets, [](const TokenShard& shard, uint64_t at, auto part) {
    shard.hide_uncounted(at, part);
  });
}

void TokenDataset::require_documents() const {
  const bool indexed = std::ranges::all_of(
      shards_, [](const TokenShard& shard) { return shard.documents().has_value(); });
  if (indexed || mark_.token != kNoToken) return;
  throw Error(ExitCode::kBadData,
              "the data does not tell where a document ends: it has no end-of-document token",
              folder_.string(), "prepare the text again, or train with train.attention SEQUENCE");
}

void TokenDataset::find_documents(int64_t position, const SequenceBuffers& buffers) const {
  require_documents();
  const std::span<int32_t> starts = buffers.document_starts;
  std::ranges::fill(starts, 0);
  if (mark_.token != kNoToken) {
    mark_documents(mark_, buffers.inputs, starts);
  } else {
    for_each_part(position, starts, [](const TokenShard& shard, uint64_t at, auto part) {
      shard.documents()->mark(at, part);
    });
  }
  marks_to_starts(starts);
}

}  // namespace flashshard::data
