// Where documents of a sequence begin: behind a prepared set's end-of-document token, at llm.c's
// first token, by Megatron-LM's index; and data that does not tell is refused.
#include "runtime/data/document_bounds.h"

#include "runtime/data/prepare.h"
#include "runtime/data/sequence_sampler.h"
#include "runtime/data/token_dataset.h"
#include "runtime/data/validation_windows.h"
#include "tests/runtime/data/data_folder.h"
#include "tests/runtime/data/foreign_files.h"

namespace flashshard::data {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

std::vector<int32_t> starts_of(const TokenDataset& dataset, int64_t position, size_t length) {
  std::vector<int32_t> inputs(length), targets(length), starts(length, 77);
  dataset.read_window(position, {inputs, targets, starts});
  return starts;
}

TEST(DocumentBounds, StandBehindATokenThatEndsOrAtOneThatBegins) {
  const std::vector<int32_t> tokens = {9, 1, 9, 9, 2, 3, 9};
  const auto starts = [&](DocumentMark::Place place) {
    std::vector<int32_t> result(tokens.size());
    mark_documents({.token = 9, .place = place}, tokens, result);
    marks_to_starts(result);
    return result;
  };
  EXPECT_THAT(starts(DocumentMark::Place::kEnd), ElementsAre(0, 1, 1, 3, 4, 4, 4));
  EXPECT_THAT(starts(DocumentMark::Place::kBegin), ElementsAre(0, 0, 2, 3, 3, 3, 6));
}

TEST(DocumentBounds, OfAPreparedSetFollowItsEndOfDocumentTokens) {
  DataFolder folder;
  write_file(folder / "in", "{\"text\": \"abc\"}\n{\"text\": \"d\"}\n{\"text\": \"ef\"}\n");
  // "abc|d|ef|" in shards of 5 tokens: the second document begins in the first shard.
  prepare({.inputs = {folder / "in"},
           .output = folder / "out",
           .jsonl_fields = {"text"},
           .validation_fraction = 0,
           .shard_tokens = 5,
           .progress = {}});
  const auto dataset = TokenDataset::open(folder / "out", Split::kTrain);
  EXPECT_THAT(starts_of(dataset, 0, 8), ElementsAre(0, 0, 0, 0, 4, 4, 6, 6));
  EXPECT_THAT(starts_of(dataset, 2, 4), ElementsAre(0, 0, 2, 2));
  EXPECT_THAT(starts_of(dataset, 4, 4), ElementsAre(0, 0, 2, 2));
}

TEST(DocumentBounds, OfLlmcShardsBeginWithTheTokenThatItsScriptsPutThere) {
  DataFolder folder;
  write_file(folder / "a.bin", llmc_gpt2({7, 50256, 1, 2, 50256, 50256, 3}));
  EXPECT_THAT(starts_of(TokenDataset::open(folder / "a.bin", Split::kTrain), 0, 6),
              ElementsAre(0, 1, 1, 1, 4, 5));
  write_file(folder / "b.bin",
             llmc_header(20240801, 7, 4) + token_bytes<uint32_t>({50256, 1, 128000, 5}));
  EXPECT_THAT(starts_of(TokenDataset::open(folder / "b.bin", Split::kTrain), 0, 3),
              ElementsAre(0, 0, 2));
}

TEST(DocumentBounds, OfMegatronsShardsAreThoseOfTheIndex) {
  DataFolder folder;
  // Documents of two sequences, none (an empty document), one and one; two pairs.
  const Index index = {.sizes = {5, 2, 3, 2}, .documents = {0, 2, 2, 3, 4}};
  for (const char* name : {"x", "y"}) {
    write_file(folder / (std::string(name) + ".idx"), index.bytes());
    write_file(folder / (std::string(name) + ".bin"), token_bytes(counting<uint16_t>(12)));
  }
  const auto dataset = TokenDataset::open(folder.path(), Split::kTrain);
  std::vector<int32_t> begins;  // of all documents
  for (const int32_t shard : {0, 12}) {
    for (const int32_t first : {0, 7, 10}) begins.push_back(shard + first);
  }
  for (int32_t position = 0; position < 23; ++position) {
    for (int32_t length = 1; position + length < 24; ++length) {
      std::vector<int32_t> expected;
      for (int32_t i = position; i < position + length; ++i) {
        const auto last = std::upper_bound(begins.begin(), begins.end(), i) - 1;
        expected.push_back(std::max(*last - position, 0));
      }
      ASSERT_EQ(starts_of(dataset, position, static_cast<size_t>(length)), expected)
          << position << " + " << length;
    }
  }
}

TEST(DocumentBounds, ReachTrainingSequencesAndValidationWindows) {
  DataFolder folder;
  std::string text;
  for (int i = 0; i < 30; ++i) text += "{\"text\": \"abcdef\"}\n";
  write_file(folder / "in", text);
  prepare({.inputs = {folder / "in"},
           .output = folder / "out",
           .jsonl_fields = {"text"},
           .validation_fraction = 0.1,
           .progress = {}});
  const auto check = [](const std::vector<int32_t>& inputs, const std::vector<int32_t>& starts) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const auto index = static_cast<int32_t>(i % 10);
      EXPECT_EQ(starts[i], index == 0 || inputs[i - 1] == 0 ? index : starts[i - 1]) << i;
    }
  };
  const auto train = TokenDataset::open(folder / "out", Split::kTrain);
  const SequenceSampler sampler(train, {.seed = 1, .sequence_length = 10});
  std::vector<int32_t> inputs(30), targets(30), starts(30);
  sampler.fill(0, 3, {inputs, targets, starts});
  check(inputs, starts);

  const auto validation = TokenDataset::open(folder / "out", Split::kValidation);
  ASSERT_EQ(validation.token_count(), 21);
  const ValidationWindows windows(validation, {.sequence_length = 10});
  windows.fill(
      1, 2,
      {std::span(inputs).first(20), std::span(targets).first(20), std::span(starts).first(20)});
  check({inputs.begin(), inputs.begin() + 10}, starts);
  // The row past the end is padding, a document of its own.
  EXPECT_THAT(std::vector<int32_t>(starts.begin() + 10, starts.begin() + 20), testing::Each(0));
  std::vector<int32_t> long_inputs(16), long_targets(16), long_starts(16);
  const ValidationWindows one(validation, {.sequence_length = 16});
  one.fill(1, 1, {long_inputs, long_targets, long_starts});
  EXPECT_THAT(long_starts, ElementsAre(0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4));
}

TEST(DocumentBounds, BuffersOfAnotherSizeAreRefused) {
  DataFolder folder;
  write_file(folder / "a.bin", llmc_gpt2({50256, 1, 2, 3, 4, 5}));
  const auto dataset = TokenDataset::open(folder / "a.bin", Split::kTrain);
  const SequenceSampler sampler(dataset, {.seed = 1, .sequence_length = 2});
  std::vector<int32_t> two(2), one(1);
  EXPECT_THAT(error_of([&] { sampler.fill(0, 1, {two, two, one}); }), StartsWith("1: "));
}

TEST(DocumentBounds, ThatTheDataDoesNotTellAreRefused) {
  DataFolder folder;
  std::filesystem::create_directory(folder / "bytes");
  write_dataset<uint8_t>(folder / "bytes", {counting<uint8_t>(10)});
  // Ids of another vocabulary in llm.c's format: nothing says which of them ends a document.
  write_file(folder / "a.bin", llmc_gpt2({1, 2, 60000}));
  for (const char* name : {"bytes", "a.bin"}) {
    const auto dataset = TokenDataset::open(folder / name, Split::kTrain);
    const auto message = AllOf(StartsWith("3: the data does not tell where a document ends"),
                               HasSubstr(name), HasSubstr("train.attention SEQUENCE"));
    EXPECT_THAT(error_of([&] { dataset.require_documents(); }), message);
    EXPECT_THAT(error_of([&] { starts_of(dataset, 0, 2); }), message);
  }
}

TEST(DocumentBounds, OfAnIndexThatHasShrunkAreAnError) {
  DataFolder folder;
  write_file(folder / "x.idx", Index{}.bytes());
  write_file(folder / "x.bin", token_bytes(counting<uint16_t>(10)));
  const auto dataset = TokenDataset::open(folder / "x", Split::kTrain);
  std::filesystem::resize_file(folder / "x.idx", 20);
  EXPECT_THAT(error_of([&] { starts_of(dataset, 0, 5); }),
              AllOf(StartsWith("3: "), HasSubstr("x.idx")));
}

}  // namespace
}  // namespace flashshard::data
