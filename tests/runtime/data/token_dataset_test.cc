// A split of a prepared folder reads as one text, whatever its shards; a folder that does not hold
// together is refused.
#include "runtime/data/token_dataset.h"

#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

TEST(TokenDataset, ReadsAcrossShardBoundaries) {
  DataFolder folder;
  write_dataset<uint16_t>(
      folder.path(), {counting<uint16_t>(5), counting<uint16_t>(1, 5), counting<uint16_t>(14, 6)},
      {counting<uint16_t>(3, 100)}, 1000);
  const auto train = TokenDataset::open(folder.path(), Split::kTrain);
  EXPECT_EQ(train.token_count(), 20);
  EXPECT_EQ(train.vocab_size(), 1000);
  for (size_t position = 0; position <= 20; ++position) {
    for (size_t count = 0; position + count <= 20; ++count) {
      std::vector<int32_t> out(count);
      train.read(static_cast<int64_t>(position), out);
      ASSERT_EQ(out, counting<int32_t>(count, position)) << position << " + " << count;
    }
  }
  const auto validation = TokenDataset::open(folder.path(), Split::kValidation);
  std::vector<int32_t> out(3);
  validation.read(0, out);
  EXPECT_EQ(out, counting<int32_t>(3, 100));
}

TEST(TokenDataset, RefusesAReadOutsideTheText) {
  DataFolder folder;
  write_dataset<uint8_t>(folder.path(), {counting<uint8_t>(10)});
  const auto dataset = TokenDataset::open(folder.path(), Split::kTrain);
  std::vector<int32_t> out(3);
  EXPECT_THAT(error_of([&] { dataset.read(8, out); }), StartsWith("1: "));
  EXPECT_THAT(error_of([&] { dataset.read(-1, out); }), StartsWith("1: "));
  EXPECT_THAT(error_of([&] { dataset.read(11, {}); }), StartsWith("1: "));
}

TEST(TokenDataset, NamesTheShardOfABadId) {
  DataFolder folder;
  write_dataset<uint8_t>(folder.path(), {{1, 2, 3}, {4, 250, 6}}, {}, 100);
  const auto dataset = TokenDataset::open(folder.path(), Split::kTrain);
  std::vector<int32_t> out(4);
  dataset.read(0, out);
  EXPECT_THAT(error_of([&] { dataset.read(1, out); }),
              AllOf(StartsWith("3: token id 250 at position 1 "), HasSubstr("train-00001.tokens")));
}

TEST(TokenDataset, WithoutHeldOutTextSaysHowToGetSome) {
  DataFolder folder;
  write_dataset<uint8_t>(folder.path(), {counting<uint8_t>(10)});
  EXPECT_THAT(error_of([&] { TokenDataset::open(folder.path(), Split::kValidation); }),
              AllOf(StartsWith("3: data set has no validation tokens"),
                    HasSubstr("validation fraction above 0")));
}

TEST(TokenDataset, RefusesAShardOfAnotherDataSetOrPlace) {
  DataFolder folder;
  write_dataset<uint8_t>(folder.path(), {counting<uint8_t>(10), counting<uint8_t>(10, 10)});
  std::filesystem::copy_file(folder / "train-00000.tokens", folder / "train-00001.tokens",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(error_of([&] { TokenDataset::open(folder.path(), Split::kTrain); }),
              AllOf(StartsWith("3: "), HasSubstr("differs from what dataset.json says"),
                    HasSubstr("train-00001.tokens")));
}

TEST(TokenDataset, RefusesAMissingShardByName) {
  DataFolder folder;
  write_dataset<uint8_t>(folder.path(), {counting<uint8_t>(10), counting<uint8_t>(10, 10)});
  std::filesystem::remove(folder / "train-00001.tokens");
  EXPECT_THAT(
      error_of([&] { TokenDataset::open(folder.path(), Split::kTrain); }),
      AllOf(StartsWith("3: cannot open file: No such file"), HasSubstr("train-00001.tokens")));
}

TEST(TokenDataset, ChecksOnlyTheShardsOfItsSplit) {
  DataFolder folder;
  write_dataset<uint8_t>(folder.path(), {counting<uint8_t>(10)}, {counting<uint8_t>(10)});
  std::filesystem::resize_file(folder / "validation-00000.tokens", 70);
  EXPECT_EQ(error_of([&] { TokenDataset::open(folder.path(), Split::kTrain); }), "nothing thrown");
  EXPECT_THAT(error_of([&] { TokenDataset::open(folder.path(), Split::kValidation); }),
              HasSubstr("truncated: expected 74 bytes, found 70"));
}

TEST(TokenDataset, OutlivesTheFolderBeingPreparedAgain) {
  DataFolder folder;
  write_dataset<uint8_t>(folder.path(), {counting<uint8_t>(10)});
  const auto dataset = TokenDataset::open(folder.path(), Split::kTrain);
  write_dataset<uint8_t>(folder.path(), {{9, 9}});
  std::vector<int32_t> out(10);
  dataset.read(0, out);
  EXPECT_EQ(out, counting<int32_t>(10));
}

}  // namespace
}  // namespace flashshard::data
