#include "runtime/data/prepare.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#include "kernels/error.h"
#include "runtime/data/dataset_writer.h"
#include "runtime/data/document_source.h"
#include "runtime/data/file.h"
#include "runtime/data/foreign_data.h"
#include "runtime/data/prepared_folder.h"

namespace flashshard::data {

namespace {

constexpr int64_t kMillion = 1'000'000;
constexpr int64_t kWantedBlocks = 32;
constexpr int64_t kShortestBlock = 1024;
constexpr int64_t kLongestBlock = 16384;
constexpr size_t kReadBytes = size_t{1} << 20;

std::vector<InputFile> open_inputs(const std::vector<std::filesystem::path>& paths) {
  if (paths.empty()) throw Error(ExitCode::kUsage, "no input file given", "", "name at least one");
  std::vector<InputFile> inputs;
  for (const auto& path : paths) {
    InputFile input(path);
    if (is_foreign_shard(path)) {
      throw Error(ExitCode::kUsage, "is a file of tokens already", path.string(),
                  "train on it as it is: name it, or its folder, as data.path");
    }
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

namespace {

void check_fields(const std::vector<std::string>& fields) {
  const bool fits = fields.size() <= 2 && std::ranges::none_of(fields, &std::string::empty) &&
                    (fields.size() < 2 || fields[0] != fields[1]);
  if (fits) return;
  throw Error(ExitCode::kUsage, "JSONL fields are one name or two different ones", "--jsonl-fields",
              "give the document's field, or the prompt's and the response's: prompt,response");
}

std::unique_ptr<DocumentSource> make_source(const PrepareOptions& options,
                                            const HeldOutBlocks& blocks, Tokenizer& tokenizer,
                                            DatasetWriter& writer) {
  if (!options.jsonl_fields.empty()) {
    return make_jsonl_source(blocks, options.jsonl_fields, tokenizer, writer);
  }
  if (tokenizer.identity().kind == "byte") return make_byte_text_source(blocks, writer);
  return make_line_text_source(blocks, tokenizer, writer);
}

/// Braces and field names learnt by heart are a surprise that comes late.
void require_plain_text(std::span<const std::filesystem::path> inputs) {
  for (const auto& input : inputs) {
    if (input.extension() != ".jsonl" && input.extension() != ".ndjson") continue;
    throw Error(ExitCode::kUsage, "is JSONL by its name and would be read as plain text",
                input.string(),
                "name the fields to read, --jsonl-fields text or --jsonl-fields prompt,response; "
                "text that is meant as it is wants another name");
  }
}

void require_both_splits(const DatasetManifest& manifest, const PrepareOptions& options) {
  for (const Split split : {Split::kTrain, Split::kValidation}) {
    const bool wanted = split == Split::kTrain || options.validation_fraction > 0;
    if (!wanted || manifest.totals(split).counted > 0) continue;
    throw Error(ExitCode::kBadData,
                fmt::format("no {} of the input falls into the {} split",
                            options.jsonl_fields.empty() ? "line" : "document", split_name(split)),
                options.inputs.front().string(),
                "give more text, another validation fraction, or 0 to hold nothing out");
  }
}

PrepareReport report_of(const DatasetManifest& manifest, int64_t input_bytes) {
  return {.input_bytes = input_bytes,
          .train_tokens = manifest.token_count(Split::kTrain),
          .validation_tokens = manifest.token_count(Split::kValidation),
          .train_shards = static_cast<int64_t>(manifest.train.size()),
          .validation_shards = static_cast<int64_t>(manifest.validation.size()),
          .validation_block_tokens = manifest.validation_block_tokens,
          .train_totals = manifest.train_totals,
          .validation_totals = manifest.validation_totals,
          .tokenizer = manifest.identity(),
          .fingerprint = manifest.fingerprint()};
}

}  // namespace

PrepareReport prepare(const PrepareOptions& options) {
  check_fields(options.jsonl_fields);
  std::vector<InputFile> inputs = open_inputs(options.inputs);
  int64_t total_bytes = 0;
  for (const InputFile& input : inputs) total_bytes += input.size();
  const HeldOutBlocks blocks(total_bytes, options.validation_fraction);
  check_shard_limit(options.shard_tokens, total_bytes);
  const auto tokenizer = make_tokenizer(options.tokenizer);
  if (options.jsonl_fields.empty()) require_plain_text(options.inputs);

  PreparedFolder folder(options.output);
  DatasetManifest manifest;
  manifest.set_identity(tokenizer->identity());
  manifest.token_bytes = token_bytes_of(manifest.vocab_size);
  manifest.loss_mask = options.jsonl_fields.size() > 1;
  manifest.validation_fraction = options.validation_fraction;
  manifest.validation_block_tokens = options.jsonl_fields.empty() ? blocks.block_bytes() : 0;
  DatasetWriter writer(folder, {.shard_tokens = options.shard_tokens,
                                .tokenizer = tokenizer->identity(),
                                .loss_mask = manifest.loss_mask});
  const auto source = make_source(options, blocks, *tokenizer, writer);
  int64_t done = 0;
  for (InputFile& input : inputs) {
    source->begin(input.path());
    manifest.sources.push_back(read_source(input, [&](std::span<const std::byte> text) {
      source->append(text);
      done += std::ssize(text);
      if (options.progress) options.progress(done, total_bytes);
    }));
    source->end();
  }
  source->finish();
  if (options.validation_fraction > 0) refuse_equal_sources(manifest.sources);
  writer.finish(manifest);
  require_both_splits(manifest, options);
  for (const auto& file : tokenizer->files()) {
    folder.add_tokenizer_file(file, tokenizer_file_name(tokenizer->identity(), file));
  }
  folder.publish(manifest);
  return report_of(manifest, total_bytes);
}

}  // namespace flashshard::data
