// Shards of llm.c and Megatron-LM are read as they are, and what does not hold together is refused.
#include "runtime/data/foreign_data.h"

#include <cstring>

#include "runtime/data/prepare.h"
#include "runtime/data/token_dataset.h"
#include "tests/runtime/data/data_folder.h"
#include "tests/runtime/data/foreign_files.h"

namespace flashshard::data {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

std::vector<int32_t> all_tokens(const TokenDataset& dataset) {
  std::vector<int32_t> tokens(static_cast<size_t>(dataset.token_count()));
  dataset.read(0, tokens);
  return tokens;
}

TEST(Llmc, ShardOfGpt2IdsIsReadInPlace) {
  DataFolder folder;
  write_file(folder / "a.bin", llmc_gpt2({50256, 1, 2, 3, 40000}));
  const auto dataset = TokenDataset::open(folder / "a.bin", Split::kTrain);
  EXPECT_EQ(all_tokens(dataset), (std::vector<int32_t>{50256, 1, 2, 3, 40000}));
  EXPECT_EQ(dataset.vocab_size(), 50257);
  EXPECT_EQ(dataset.manifest().tokenizer, "llm.c");
  EXPECT_EQ(TokenDataset::open_for_evaluation(folder / "a.bin").token_count(), 5);
}

TEST(Llmc, ShardOfLlama3IdsIsReadInPlace) {
  DataFolder folder;
  write_file(folder / "a.bin",
             llmc_header(20240801, 7, 3) + token_bytes<uint32_t>({128000, 5, 70000}));
  const auto dataset = TokenDataset::open(folder / "a.bin", Split::kTrain);
  EXPECT_EQ(all_tokens(dataset), (std::vector<int32_t>{128000, 5, 70000}));
}

TEST(Llmc, FolderHoldsBothSplitsInTheOrderOfTheNames) {
  DataFolder folder;
  write_file(folder / "text_train_000002.bin", llmc_gpt2({4, 5}));
  write_file(folder / "text_train_000001.bin", llmc_gpt2({1, 2, 3}));
  write_file(folder / "text_val_000000.bin", llmc_gpt2({9}));
  const auto train = TokenDataset::open(folder.path(), Split::kTrain);
  EXPECT_EQ(all_tokens(train), (std::vector<int32_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(train.manifest().token_count(Split::kValidation), 1);
  EXPECT_EQ(all_tokens(TokenDataset::open(folder.path(), Split::kValidation)),
            std::vector<int32_t>{9});
  EXPECT_EQ(TokenDataset::open_for_evaluation(folder.path()).token_count(), 1);
}

TEST(Llmc, FingerprintFollowsTheTokens) {
  DataFolder folder;
  const auto fingerprint = [&](const std::vector<uint16_t>& tokens) {
    write_file(folder / "a.bin", llmc_gpt2(tokens));
    return TokenDataset::open(folder / "a.bin", Split::kTrain).manifest().fingerprint();
  };
  const std::string first = fingerprint({1, 2, 9});
  EXPECT_EQ(fingerprint({1, 2, 9}), first);
  EXPECT_NE(fingerprint({2, 1, 9}), first);
}

TEST(Llmc, WithoutValidationFilesSaysHowTheyAreNamed) {
  DataFolder folder;
  write_file(folder / "a.bin", llmc_gpt2({1, 2}));
  EXPECT_THAT(error_of([&] { TokenDataset::open(folder.path(), Split::kValidation); }),
              AllOf(StartsWith("3: data set has no validation tokens"), HasSubstr("_val")));
}

struct BadFile {
  std::string content;
  const char* message;
};
class BadLlmc : public testing::TestWithParam<BadFile> {};

TEST_P(BadLlmc, IsRefusedByName) {
  DataFolder folder;
  write_file(folder / "bad.bin", GetParam().content);
  EXPECT_THAT(error_of([&] { TokenDataset::open(folder / "bad.bin", Split::kTrain); }),
              AllOf(StartsWith("3: "), HasSubstr(GetParam().message), HasSubstr("bad.bin")));
}

INSTANTIATE_TEST_SUITE_P(
    Files, BadLlmc,
    testing::Values(
        BadFile{"short", "is too short for a shard of llm.c: 5 bytes"},
        BadFile{std::string(2000, 'x'), "its magic is 2021161080, not 20240520 or 20240801"},
        BadFile{llmc_header(20240520, 2, 1) + "ab", "has version 2, magic 20240520 is read in"},
        BadFile{llmc_header(20240801, 1, 1) + "abcd", "has version 1, magic 20240801 is read in"},
        BadFile{llmc_header(20240520, 1, 0), "claims 0 tokens"},
        BadFile{llmc_header(20240520, 1, -1), "claims -1 tokens"},
        BadFile{llmc_header(20240520, 1, 3) + "abcd", "is truncated: expected 1030 bytes, found"},
        BadFile{llmc_header(20240520, 1, 1) + "abcd", "is too long: expected 1026 bytes, found"},
        BadFile{llmc_header(20240801, 7, 1) + "\xff\xff\xff\xff", "token id 4294967295 "}));

class Megatron : public testing::Test {
 protected:
  void write_pair(const Index& index, const std::string& tokens) {
    write_file(folder_ / "x.idx", index.bytes());
    write_file(folder_ / "x.bin", tokens);
  }
  std::string error() {
    return error_of([&] { TokenDataset::open(folder_ / "x", Split::kTrain); });
  }

  DataFolder folder_;
  const std::string ten_ = token_bytes(counting<uint16_t>(10));
};

TEST_F(Megatron, PairIsReadInPlaceByAnyOfItsNames) {
  write_pair({}, ten_);
  for (const char* name : {"x", "x.bin", "x.idx", ""}) {
    const auto dataset = TokenDataset::open(folder_ / name, Split::kTrain);
    EXPECT_EQ(all_tokens(dataset), counting<int32_t>(10)) << name;
    EXPECT_EQ(dataset.manifest().train_totals.documents, 2);
    EXPECT_EQ(dataset.manifest().tokenizer, "megatron");
  }
}

TEST_F(Megatron, TokensMayHaveOneTwoOrFourBytes) {
  write_pair({.type = 1, .token_bytes = 1}, token_bytes(counting<uint8_t>(10)));
  EXPECT_EQ(all_tokens(TokenDataset::open(folder_ / "x", Split::kTrain)), counting<int32_t>(10));
  write_pair({.type = 4, .token_bytes = 4}, token_bytes(counting<int32_t>(10, 100'000)));
  EXPECT_EQ(all_tokens(TokenDataset::open(folder_ / "x", Split::kTrain)),
            counting<int32_t>(10, 100'000));
}

TEST_F(Megatron, IndexThatIsNoneIsRefused) {
  write_pair({.magic = "something"}, ten_);
  EXPECT_THAT(error(), AllOf(StartsWith("3: is no index of Megatron-LM"), HasSubstr("x.idx")));
  write_pair({.version = 2}, ten_);
  EXPECT_THAT(error(), StartsWith("3: index has version 2, this program reads 1"));
  write_pair({.type = 6}, ten_);
  EXPECT_THAT(error(), StartsWith("3: index has the token type 6"));
  write_file(folder_ / "x.idx", Index{}.bytes().substr(0, 50));
  EXPECT_THAT(error(), StartsWith("3: index of 3 sequences and 3 document bounds does not have"));
  write_file(folder_ / "x.idx", Index{}.bytes() + "x");
  EXPECT_THAT(error(), StartsWith("3: index of 3 sequences and 3 document bounds does not have"));
}

TEST_F(Megatron, IndexThatContradictsItselfIsRefused) {
  write_pair({.token_bytes = 4}, ten_);
  EXPECT_THAT(error(), StartsWith("3: index puts sequence 1 at byte 20, the sequences before it"));
  write_pair({.sizes = {5, -2, 3}}, ten_);
  EXPECT_THAT(error(), StartsWith("3: index gives sequence 1 the size -2"));
  for (const std::vector<int64_t>& documents :
       {std::vector<int64_t>{1, 3}, {0, 2, 1, 3}, {0, 4}, {0, 2}}) {
    write_pair({.documents = documents}, ten_);
    EXPECT_THAT(error(), StartsWith("3: index begins document "));
  }
  write_pair({.documents = {}}, ten_);
  EXPECT_THAT(error(), StartsWith("3: index has no document bounds"));
  write_pair({.sizes = {0, 0, 0}}, "");
  EXPECT_THAT(error(), StartsWith("3: index holds no tokens"));
}

TEST_F(Megatron, CountsThatWouldOverflowAreRefused) {
  std::string index = Index{}.bytes();
  const uint64_t huge = uint64_t{1} << 62;
  std::memcpy(index.data() + 18, &huge, sizeof(huge));
  write_file(folder_ / "x.idx", index);
  write_file(folder_ / "x.bin", ten_);
  EXPECT_THAT(error(), StartsWith("3: index of 4611686018427387904 sequences"));
}

TEST_F(Megatron, IndexAndDataThatDisagreeAreRefused) {
  write_pair({}, ten_.substr(2));
  EXPECT_THAT(error(), AllOf(StartsWith("3: its index says 10 tokens of 2 bytes"),
                             HasSubstr("18 bytes"), HasSubstr("x.bin")));
  std::filesystem::remove(folder_ / "x.bin");
  EXPECT_THAT(error_of([&] { TokenDataset::open(folder_.path(), Split::kTrain); }),
              AllOf(StartsWith("3: index has no .bin file"), HasSubstr("x.idx")));
}

TEST_F(Megatron, FolderOfTwoKindsOfTokensIsRefused) {
  write_pair({}, ten_);
  write_file(folder_ / "y.bin", llmc_gpt2({1, 2}));
  EXPECT_THAT(error_of([&] { TokenDataset::open(folder_.path(), Split::kTrain); }),
              AllOf(StartsWith("3: its kind of tokens is not that of"), HasSubstr("y.bin")));
}

TEST(ForeignData, IsNeitherAPreparedFolderNorAnEmptyOne) {
  DataFolder folder;
  EXPECT_FALSE(is_foreign_data(folder.path()));
  EXPECT_FALSE(is_foreign_data(folder / "nowhere"));
  write_file(folder / "a.bin", "x");
  EXPECT_TRUE(is_foreign_data(folder.path()));
  write_file(folder / "dataset.json", "{}");
  EXPECT_FALSE(is_foreign_data(folder.path()));
}

TEST(ForeignData, NeedsNoPreparingAndPrepareSaysSo) {
  DataFolder folder;
  write_file(folder / "a.bin", llmc_gpt2({1, 2}));
  write_file(folder / "x.idx", Index{}.bytes());
  write_file(folder / "x.bin", "tokens of which nothing is known");
  for (const char* name : {"a.bin", "x.idx", "x.bin"}) {
    EXPECT_THAT(error_of([&] {
                  prepare({.inputs = {folder / name}, .output = folder / "out", .progress = {}});
                }),
                AllOf(StartsWith("2: is a file of tokens already"), HasSubstr(name)));
  }
}

}  // namespace
}  // namespace flashshard::data
