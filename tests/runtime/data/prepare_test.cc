// `prepare` turns text into shards without losing, repeating or mixing a byte.
#include "runtime/data/prepare.h"

#include "runtime/data/token_dataset.h"
#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

std::string text_of_split(const std::filesystem::path& folder, Split split) {
  const auto dataset = TokenDataset::open(folder, split);
  std::vector<int32_t> tokens(static_cast<size_t>(dataset.token_count()));
  dataset.read(0, tokens);
  return {tokens.begin(), tokens.end()};
}

// The text without the bytes that end documents.
std::string without_ends(std::string text, int64_t& ends) {
  ends += static_cast<int64_t>(std::erase(text, '\0'));
  return text;
}

// The text put together again from both splits by the rule of the document.
std::string merged(const std::filesystem::path& folder, int64_t total_bytes, double fraction,
                   int64_t& ends) {
  const HeldOutBlocks blocks(total_bytes, fraction);
  const std::string train = without_ends(text_of_split(folder, Split::kTrain), ends);
  const std::string validation =
      fraction > 0 ? without_ends(text_of_split(folder, Split::kValidation), ends) : "";
  std::string text;
  size_t from_train = 0;
  size_t from_validation = 0;
  for (int64_t block = 0; static_cast<int64_t>(text.size()) < total_bytes; ++block) {
    const auto size = static_cast<size_t>(
        std::min(blocks.block_bytes(), total_bytes - static_cast<int64_t>(text.size())));
    const bool held_out = blocks.is_held_out(block);
    size_t& from = held_out ? from_validation : from_train;
    text += (held_out ? validation : train).substr(from, size);
    from += size;
  }
  EXPECT_EQ(from_train, train.size());
  EXPECT_EQ(from_validation, validation.size());
  return text;
}

struct Corpus {
  std::vector<size_t> files;
  int64_t shard_tokens;
  double fraction;
};
class Prepare : public testing::TestWithParam<Corpus> {};

TEST_P(Prepare, PutsEveryByteIntoExactlyOneSplitInOrder) {
  const Corpus& corpus = GetParam();
  DataFolder folder;
  size_t total = 0;
  for (const size_t bytes : corpus.files) total += bytes;
  const std::string text = text_of(total);
  PrepareOptions options = {.inputs = {},
                            .output = folder / "out",
                            .validation_fraction = corpus.fraction,
                            .shard_tokens = corpus.shard_tokens,
                            .progress = {}};
  size_t from = 0;
  for (const size_t bytes : corpus.files) {
    options.inputs.push_back(folder / ("in" + std::to_string(from)));
    write_file(options.inputs.back(), text.substr(from, bytes));
    from += bytes;
  }
  const PrepareReport report = prepare(options);
  const auto total_bytes = static_cast<int64_t>(total);
  int64_t ends = 0;
  EXPECT_EQ(merged(folder / "out", total_bytes, corpus.fraction, ends), text);
  const auto files = static_cast<int64_t>(corpus.files.size());
  EXPECT_EQ(ends, files);
  EXPECT_EQ(report.input_bytes, total_bytes);
  EXPECT_EQ(report.train_tokens + report.validation_tokens, total_bytes + files);
  EXPECT_EQ(report.train_totals.text_bytes + report.validation_totals.text_bytes, total_bytes);
  EXPECT_EQ(report.train_totals.documents + report.validation_totals.documents, files);
  EXPECT_NEAR(static_cast<double>(report.validation_tokens),
              corpus.fraction * static_cast<double>(total),
              static_cast<double>(report.validation_block_tokens + files));
  EXPECT_EQ(report.train_shards,
            (report.train_tokens + corpus.shard_tokens - 1) / corpus.shard_tokens);
  const DatasetManifest manifest = read_manifest(folder / "out");
  EXPECT_EQ(manifest.sources.size(), corpus.files.size());
  EXPECT_EQ(manifest.fingerprint(), report.fingerprint);
}

INSTANTIATE_TEST_SUITE_P(
    Corpora, Prepare,
    testing::Values(Corpus{{100}, 1 << 28, 0.05}, Corpus{{2}, 1 << 28, 0.5},
                    Corpus{{20'000, 1, 30'000}, 1 << 28, 0.05}, Corpus{{50'000}, 7'000, 0.1},
                    Corpus{{3'000'000}, 1'000'000, 0.05},  // several reads, several shards
                    Corpus{{1 << 20, 1 << 20}, 1 << 20, 0.25}, Corpus{{999, 1001}, 100, 0.5}));

TEST(HeldOutBlocks, AreSpreadOverTheTextAndNeverAtItsStart) {
  const HeldOutBlocks blocks(4'404'412, 0.05);
  EXPECT_EQ(blocks.block_bytes(), 4'404'412 / 20 / 32);
  std::vector<int64_t> held_out;
  for (int64_t block = 0; block < 640; ++block) {
    if (blocks.is_held_out(block)) held_out.push_back(block);
  }
  ASSERT_EQ(held_out.size(), 32u);
  for (size_t i = 0; i < held_out.size(); ++i)
    EXPECT_EQ(held_out[i], 9 + 20 * static_cast<int64_t>(i));
}

TEST(HeldOutBlocks, HaveALengthBetweenOneAndSixteenKibibytes) {
  EXPECT_EQ(HeldOutBlocks(1000, 0.05).block_bytes(), 50);  // the whole share
  EXPECT_EQ(HeldOutBlocks(100'000, 0.05).block_bytes(), 1024);
  EXPECT_EQ(HeldOutBlocks(int64_t{1} << 50, 0.05).block_bytes(), 16384);
}

TEST(HeldOutBlocks, OfFractionZeroDoNotExist) {
  const HeldOutBlocks blocks(1'000'000, 0);
  for (int64_t block = 0; block < 1000; ++block) EXPECT_FALSE(blocks.is_held_out(block));
}

TEST(PrepareTwice, GivesTheSameBytesAndLeavesNothingElse) {
  DataFolder folder;
  write_file(folder / "in", text_of(50'000));
  const PrepareOptions options = {.inputs = {folder / "in"},
                                  .output = folder / "new" / "out",
                                  .shard_tokens = 20'000,
                                  .progress = {}};
  const auto contents = [&] {
    prepare(options);
    std::vector<std::pair<std::string, std::string>> files;
    for (const std::string& name : names_in(options.output)) {
      files.emplace_back(name, read_file(options.output / name));
    }
    return files;
  };
  const auto first = contents();
  EXPECT_EQ(first.size(), 5u);  // three train shards, one validation shard, dataset.json
  EXPECT_EQ(contents(), first);
}

TEST(PrepareAgain, WithLessTextRemovesTheShardsLeftOver) {
  DataFolder folder;
  write_file(folder / "long", text_of(50'000));
  write_file(folder / "short", text_of(9'000));
  PrepareOptions options = {.inputs = {folder / "long"},
                            .output = folder / "out",
                            .shard_tokens = 10'000,
                            .progress = {}};
  prepare(options);
  options.inputs = {folder / "short"};
  options.validation_fraction = 0;
  const PrepareReport report = prepare(options);
  EXPECT_EQ(report.validation_tokens, 0);
  EXPECT_EQ(names_in(folder / "out"),
            (std::vector<std::string>{"dataset.json", "train-00000.tokens"}));
}

TEST(PrepareAgain, FinishesWhatWasInterrupted) {
  DataFolder folder;
  write_file(folder / "in", text_of(5'000));
  const PrepareOptions options = {
      .inputs = {folder / "in"}, .output = folder / "out", .progress = {}};
  prepare(options);
  // As after a crash in the middle of replacing an older data set.
  std::filesystem::remove(folder / "out/dataset.json");
  write_file(folder / "out/validation-00003.tokens.tmp", "half");
  write_file(folder / "out/dataset.json.tmp", "{");
  EXPECT_THAT(error_of([&] { TokenDataset::open(folder / "out", Split::kTrain); }),
              testing::HasSubstr("no dataset.json"));
  prepare(options);
  EXPECT_EQ(names_in(folder / "out").size(), 3u);
  EXPECT_EQ(TokenDataset::open(folder / "out", Split::kTrain).token_count(), 4'751);
}

TEST(PrepareProgress, CountsUpToTheWholeInput) {
  DataFolder folder;
  write_file(folder / "in", text_of(3'000'000));
  std::vector<int64_t> seen;
  prepare({.inputs = {folder / "in"},
           .output = folder / "out",
           .progress = [&](int64_t done, int64_t total) {
             EXPECT_EQ(total, 3'000'000);
             seen.push_back(done);
           }});
  EXPECT_GE(seen.size(), 3u);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), 3'000'000);
}

}  // namespace
}  // namespace flashshard::data
