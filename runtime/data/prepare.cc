#include "runtime/data/prepare.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "kernels/error.h"
#include "runtime/data/dataset_manifest.h"
#include "runtime/data/file.h"
#include "runtime/data/prepared_folder.h"
#include "runtime/data/token_shard.h"

namespace flashshard::data {

namespace {

constexpr int64_t kMillion = 1'000'000;
constexpr int64_t kWantedBlocks = 32;
constexpr int64_t kShortestBlock = 1024;
constexpr int64_t kLongestBlock = 16384;
constexpr size_t kReadBytes = size_t{1} << 20;
constexpr uint32_t kByteVocabulary = 256;

std::vector<InputFile> open_inputs(const std::vector<std::filesystem::path>& paths) {
  if (paths.empty()) throw Error(ExitCode::kUsage, "no input file given", "", "name at least one");
  std::vector<InputFile> inputs;
  for (const auto& path : paths) {
    InputFile input(path);
    for (const InputFile& earlier : inputs) {
      if (input.is_same_file(earlier)) {
        throw Error(ExitCode::kBadData, "input is given twice", path.string(),
                    "name each file once: text must not be both trained on and held out");
      }
    }
    inputs.push_back(std::move(input));
  }
  return inputs;
}

// Cuts a stream of byte tokens into shards of one split.
class SplitWriter {
 public:
  SplitWriter(const PreparedFolder& folder, Split split, int64_t shard_tokens)
      : folder_(folder), split_(split), shard_tokens_(shard_tokens) {}

  void append(std::span<const std::byte> tokens) {
    while (!tokens.empty()) {
      if (!shard_) open_shard();
      const auto room = static_cast<size_t>(shard_tokens_) - shard_->token_count();
      const auto part = tokens.first(std::min(room, tokens.size()));
      shard_->append(part);
      tokens = tokens.subspan(part.size());
      if (part.size() == room) close_shard();
    }
  }

  std::vector<ShardRecord> finish() {
    if (shard_) close_shard();
    return std::move(records_);
  }

 private:
  void open_shard() {
    const auto index = static_cast<int64_t>(records_.size());
    shard_.emplace(ShardWriter::Options{.path = folder_.temporary_shard(split_, index),
                                        .token_bytes = 1,
                                        .vocab_size = kByteVocabulary});
  }
  void close_shard() {
    const ShardHeader header = shard_->finish();
    shard_.reset();
    records_.push_back(
        {.tokens = static_cast<int64_t>(header.token_count), .payload_hash = header.payload_hash});
  }

  const PreparedFolder& folder_;
  Split split_;
  int64_t shard_tokens_;
  std::optional<ShardWriter> shard_;
  std::vector<ShardRecord> records_;
};

// Sends each block of the text to its split.
class TextSplitter {
 public:
  TextSplitter(const PreparedFolder& folder, const HeldOutBlocks& blocks, int64_t shard_tokens)
      : blocks_(blocks),
        train_(folder, Split::kTrain, shard_tokens),
        validation_(folder, Split::kValidation, shard_tokens) {}

  void append(std::span<const std::byte> text) {
    while (!text.empty()) {
      const int64_t block = position_ / blocks_.block_bytes();
      const int64_t room = (block + 1) * blocks_.block_bytes() - position_;
      const auto part = text.first(std::min(static_cast<size_t>(room), text.size()));
      (blocks_.is_held_out(block) ? validation_ : train_).append(part);
      position_ += static_cast<int64_t>(part.size());
      text = text.subspan(part.size());
    }
  }

  int64_t position() const { return position_; }
  void finish(DatasetManifest& manifest) {
    manifest.train = train_.finish();
    manifest.validation = validation_.finish();
  }

 private:
  const HeldOutBlocks& blocks_;
  SplitWriter train_;
  SplitWriter validation_;
  int64_t position_ = 0;
};

struct FreeHashState {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

// Reads one input to its end; `chunk` sees the text in order.
SourceRecord read_source(InputFile& input,
                         const std::function<void(std::span<const std::byte>)>& chunk) {
  const std::unique_ptr<XXH3_state_t, FreeHashState> hash(XXH3_createState());
  if (hash == nullptr || XXH3_64bits_reset(hash.get()) != XXH_OK) throw std::bad_alloc();
  std::vector<std::byte> buffer(kReadBytes);
  int64_t bytes = 0;
  // One byte more than promised is asked for in the end, so that growth is noticed too.
  while (const size_t count = input.read(buffer)) {
    bytes += static_cast<int64_t>(count);
    if (bytes > input.size()) break;
    XXH3_64bits_update(hash.get(), buffer.data(), count);
    chunk(std::span(buffer).first(count));
  }
  if (bytes != input.size()) {
    throw Error(ExitCode::kBadData, "input changed while it was read", input.path().string(),
                "run the command again when nothing writes to it");
  }
  return {.name = input.path().string(), .bytes = bytes, .hash = XXH3_64bits_digest(hash.get())};
}

void refuse_equal_sources(const std::vector<SourceRecord>& sources) {
  for (size_t i = 0; i < sources.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (sources[i].hash == sources[j].hash && sources[i].bytes == sources[j].bytes) {
        throw Error(
            ExitCode::kBadData, fmt::format("input holds the same text as `{}`", sources[j].name),
            sources[i].name, "leave one out: text must not be both trained on and held out");
      }
    }
  }
}

void check_shard_limit(int64_t shard_tokens, int64_t total_bytes) {
  if (shard_tokens < 1) {
    throw Error(ExitCode::kUsage, "tokens per shard must be at least 1", "shard_tokens");
  }
  if (total_bytes / shard_tokens >= kMostShards) {
    throw Error(ExitCode::kUsage,
                fmt::format("{} tokens in shards of {} make more than {} shards", total_bytes,
                            shard_tokens, kMostShards),
                "shard_tokens", "raise it");
  }
}

}  // namespace

HeldOutBlocks::HeldOutBlocks(int64_t total_bytes, double fraction) {
  if (!(fraction >= 0 && fraction <= 0.5)) {
    throw Error(ExitCode::kUsage,
                fmt::format("validation fraction {} is not between 0 and 0.5", fraction),
                "validation_fraction");
  }
  parts_per_million_ = std::llround(fraction * static_cast<double>(kMillion));
  // Split so that the product cannot overflow.
  const int64_t share = total_bytes / kMillion * parts_per_million_ +
                        total_bytes % kMillion * parts_per_million_ / kMillion;
  if (fraction > 0 && share == 0) {
    throw Error(ExitCode::kBadData,
                fmt::format("the text has {} bytes: too few to hold out a fraction of {}",
                            total_bytes, fraction),
                "", "give more text, a larger validation fraction, or 0");
  }
  block_bytes_ = std::clamp(share / kWantedBlocks,
                            std::max<int64_t>(1, std::min(kShortestBlock, share)), kLongestBlock);
}

bool HeldOutBlocks::is_held_out(int64_t block) const {
  const auto held_out_before = [this](int64_t blocks) {
    return (blocks * parts_per_million_ + kMillion / 2) / kMillion;
  };
  return held_out_before(block + 1) > held_out_before(block);
}

PrepareReport prepare(const PrepareOptions& options) {
  std::vector<InputFile> inputs = open_inputs(options.inputs);
  int64_t total_bytes = 0;
  for (const InputFile& input : inputs) total_bytes += input.size();
  const HeldOutBlocks blocks(total_bytes, options.validation_fraction);
  check_shard_limit(options.shard_tokens, total_bytes);

  PreparedFolder folder(options.output);
  TextSplitter splitter(folder, blocks, options.shard_tokens);
  DatasetManifest manifest;
  for (InputFile& input : inputs) {
    manifest.sources.push_back(read_source(input, [&](std::span<const std::byte> text) {
      splitter.append(text);
      if (options.progress) options.progress(splitter.position(), total_bytes);
    }));
  }
  if (options.validation_fraction > 0) refuse_equal_sources(manifest.sources);
  manifest.vocab_size = kByteVocabulary;
  manifest.validation_fraction = options.validation_fraction;
  manifest.validation_block_tokens = blocks.block_bytes();
  splitter.finish(manifest);
  folder.publish(manifest);
  return {.input_bytes = total_bytes,
          .train_tokens = manifest.token_count(Split::kTrain),
          .validation_tokens = manifest.token_count(Split::kValidation),
          .train_shards = static_cast<int64_t>(manifest.train.size()),
          .validation_shards = static_cast<int64_t>(manifest.validation.size()),
          .validation_block_tokens = manifest.validation_block_tokens,
          .fingerprint = manifest.fingerprint()};
}

}  // namespace flashshard::data
