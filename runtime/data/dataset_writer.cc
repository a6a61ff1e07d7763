#include "runtime/data/dataset_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/error.h"

namespace flashshard::data {
namespace {

template <typename Token>
std::vector<std::byte> narrowed(std::span<const int32_t> tokens) {
  std::vector<Token> narrow(tokens.size());
  std::ranges::transform(tokens, narrow.begin(), [](int32_t id) { return static_cast<Token>(id); });
  const auto bytes = std::as_bytes(std::span(narrow));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

uint32_t token_bytes_of(int64_t vocab_size) {
  if (vocab_size <= int64_t{1} << 8) return 1;
  return vocab_size <= int64_t{1} << 16 ? 2 : 4;
}

SplitWriter::SplitWriter(const PreparedFolder& folder, const Options& options)
    : folder_(folder),
      options_(options),
      token_bytes_(token_bytes_of(options.tokenizer.vocab_size)) {}

void SplitWriter::append(std::span<const std::byte> tokens, Counted counted, int64_t text_bytes) {
  if (counted == Counted::kYes) {
    totals_.counted += std::ssize(tokens) / token_bytes_;
    totals_.text_bytes += text_bytes;
  }
  while (!tokens.empty()) {
    if (!shard_) open_shard();
    const auto room =
        (static_cast<size_t>(options_.shard_tokens) - shard_->token_count()) * token_bytes_;
    const auto part = tokens.first(std::min(room, tokens.size()));
    shard_->append(part, counted);
    tokens = tokens.subspan(part.size());
    if (part.size() == room) close_shard();
  }
}

void SplitWriter::append(std::span<const int32_t> tokens, Counted counted, int64_t text_bytes) {
  switch (token_bytes_) {
    case 1:
      return append(narrowed<uint8_t>(tokens), counted, text_bytes);
    case 2:
      return append(narrowed<uint16_t>(tokens), counted, text_bytes);
    default:
      return append(narrowed<uint32_t>(tokens), counted, text_bytes);
  }
}

void SplitWriter::end_document() {
  append(std::array{options_.tokenizer.end_of_document}, Counted::kYes, 0);
  ++totals_.documents;
}

void SplitWriter::finish(DatasetManifest& manifest) {
  if (shard_) close_shard();
  manifest.totals(options_.split) = totals_;
  (options_.split == Split::kTrain ? manifest.train : manifest.validation) = std::move(records_);
}

void SplitWriter::open_shard() {
  const auto index = static_cast<int64_t>(records_.size());
  if (index >= kMostShards) {
    throw Error(
        ExitCode::kUsage,
        fmt::format("shards of {} tokens become more than {}", options_.shard_tokens, kMostShards),
        "shard_tokens", "raise it");
  }
  shard_.emplace(
      ShardWriter::Options{.path = folder_.temporary_shard(options_.split, index),
                           .token_bytes = token_bytes_,
                           .vocab_size = static_cast<uint32_t>(options_.tokenizer.vocab_size),
                           .loss_mask = options_.loss_mask});
}

void SplitWriter::close_shard() {
  const ShardHeader header = shard_->finish();
  shard_.reset();
  records_.push_back(
      {.tokens = static_cast<int64_t>(header.token_count), .payload_hash = header.payload_hash});
}

}  // namespace flashshard::data
