// Token shards: what is written is read back, and nothing that is damaged is read at all.
#include "runtime/data/token_shard.h"

#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

template <typename Token>
class TokenWidth : public testing::Test {};
using Widths = testing::Types<uint8_t, uint16_t, uint32_t>;
TYPED_TEST_SUITE(TokenWidth, Widths);

TYPED_TEST(TokenWidth, ReadsBackWhatWasWrittenAtEveryPosition) {
  DataFolder folder;
  const auto tokens = counting<TypeParam>(200, 50);
  write_shard(folder / "a.tokens", tokens, 250);
  const TokenShard shard(folder / "a.tokens", PayloadCheck::kHash);
  EXPECT_EQ(shard.header().token_count, 200u);
  EXPECT_EQ(shard.header().token_bytes, sizeof(TypeParam));
  for (const uint64_t position : {0u, 1u, 7u, 150u}) {
    std::vector<int32_t> out(50);
    shard.read(position, out);
    EXPECT_EQ(out, counting<int32_t>(50, 50 + position));
  }
}

TYPED_TEST(TokenWidth, RefusesAnIdBeyondTheVocabularyAndNamesShardAndPosition) {
  DataFolder folder;
  auto tokens = counting<TypeParam>(100);
  tokens[70] = 200;
  write_shard(folder / "a.tokens", tokens, 100);
  const TokenShard shard(folder / "a.tokens", PayloadCheck::kHash);
  std::vector<int32_t> out(60);
  shard.read(0, out);
  EXPECT_THAT(error_of([&] { shard.read(40, out); }),
              AllOf(StartsWith("3: token id 200 at position 70 is beyond the vocabulary of 100"),
                    HasSubstr("a.tokens")));
}

TEST(TokenShard, RefusesAnIdThatWouldBeNegative) {
  DataFolder folder;
  write_shard<uint32_t>(folder / "a.tokens", {1, 0xffffffff, 2}, 0x7fffffff);
  const TokenShard shard(folder / "a.tokens", PayloadCheck::kHash);
  std::vector<int32_t> out(3);
  EXPECT_THAT(error_of([&] { shard.read(0, out); }),
              StartsWith("3: token id 4294967295 at position 1"));
}

TEST(TokenShardMask, HidesExactlyTheTokensThatDoNotCount) {
  DataFolder folder;
  std::vector<int32_t> expected;
  {
    ShardWriter writer(
        {.path = folder / "a.tokens", .token_bytes = 2, .vocab_size = 1000, .loss_mask = true});
    for (size_t run = 1; run < 30; ++run) {  // runs of every length, from every bit on
      const Counted counted = run % 2 == 0 ? Counted::kYes : Counted::kNo;
      const auto tokens = counting<uint16_t>(run, run);
      writer.append(std::as_bytes(std::span(tokens)), counted);
      for (const auto token : tokens) {
        expected.push_back(counted == Counted::kYes ? token : kUncountedTarget);
      }
    }
    EXPECT_TRUE(writer.finish().loss_mask);
  }
  const TokenShard shard(folder / "a.tokens", PayloadCheck::kHash);
  for (size_t first = 0; first < expected.size(); first += 13) {
    std::vector<int32_t> out(std::min<size_t>(40, expected.size() - first));
    shard.read(first, out);
    shard.hide_uncounted(first, out);
    EXPECT_TRUE(std::equal(out.begin(), out.end(), expected.begin() + static_cast<long>(first)));
  }
}

TEST(TokenShardMask, IsGuardedLikeTheTokens) {
  DataFolder folder;
  ShardWriter writer({.path = folder / "a.tokens", .vocab_size = 256, .loss_mask = true});
  writer.append(std::as_bytes(std::span("nine bytes", 9)), Counted::kNo);
  writer.finish();
  const std::string whole = read_file(folder / "a.tokens");
  ASSERT_EQ(whole.size(), kShardHeaderBytes + 9 + 2);
  const auto error = [&](const std::string& content) {
    write_file(folder / "b.tokens", content);
    return error_of([&] { TokenShard(folder / "b.tokens", PayloadCheck::kHash); });
  };
  std::string flipped = whole;
  flipped.back() = '\1';
  EXPECT_THAT(error(flipped), StartsWith("3: token shard is corrupt"));
  EXPECT_THAT(error(whole.substr(0, whole.size() - 1)), StartsWith("3: token shard is truncated"));
}

TEST(TokenShard, WithoutAMaskHidesNothing) {
  DataFolder folder;
  write_shard<uint8_t>(folder / "a.tokens", {1, 2, 3}, 256);
  const TokenShard shard(folder / "a.tokens", PayloadCheck::kHash);
  std::vector<int32_t> out = {7, 8, 9};
  shard.hide_uncounted(0, out);
  EXPECT_EQ(out, (std::vector<int32_t>{7, 8, 9}));
}

TEST(TokenShard, IsTheFormatOfTheDocumentByteForByte) {
  DataFolder folder;
  write_shard<uint16_t>(folder / "a.tokens", {0, 1, 2, 258, 49'999, 7, 32'768}, 50'000);
  EXPECT_EQ(read_file(folder / "a.tokens"),
            read_file(FLASHSHARD_TEST_DATA "/runtime/data/golden/shard-u16.tokens"));
}

TEST(TokenShard, IsRefusedWhenAnyBitOfHeaderOrPayloadIsFlipped) {
  DataFolder folder;
  write_shard(folder / "a.tokens", counting<uint16_t>(20), 1000);
  const std::string whole = read_file(folder / "a.tokens");
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    write_file(folder / "b.tokens", damaged);
    EXPECT_THAT(error_of([&] { TokenShard(folder / "b.tokens", PayloadCheck::kHash); }),
                AllOf(StartsWith("3: "), HasSubstr("b.tokens")))
        << "bit " << bit;
  }
}

TEST(TokenShard, IsRefusedWhenShorterOrLongerWithExpectedAndFoundBytes) {
  DataFolder folder;
  write_shard(folder / "a.tokens", counting<uint8_t>(100), 256);
  const std::string whole = read_file(folder / "a.tokens");
  const auto error_at = [&](size_t size) {
    std::string content = whole;
    content.resize(size);
    write_file(folder / "b.tokens", content);
    return error_of([&] { TokenShard(folder / "b.tokens", PayloadCheck::kSizeOnly); });
  };
  EXPECT_THAT(error_at(0), HasSubstr("truncated: expected at least 64 bytes, found 0"));
  EXPECT_THAT(error_at(63), HasSubstr("truncated: expected at least 64 bytes, found 63"));
  EXPECT_THAT(error_at(64), HasSubstr("truncated: expected 164 bytes, found 64"));
  EXPECT_THAT(error_at(163), HasSubstr("truncated: expected 164 bytes, found 163"));
  EXPECT_THAT(error_at(165), HasSubstr("too long: expected 164 bytes, found 165"));
  EXPECT_EQ(error_at(164), "nothing thrown");
}

TEST(TokenShard, LeavesPayloadUnreadWhenOnlySizesAreChecked) {
  DataFolder folder;
  write_shard(folder / "a.tokens", counting<uint8_t>(100), 256);
  std::string content = read_file(folder / "a.tokens");
  content.back() = 0;
  write_file(folder / "a.tokens", content);
  EXPECT_EQ(error_of([&] { TokenShard(folder / "a.tokens", PayloadCheck::kSizeOnly); }),
            "nothing thrown");
  EXPECT_THAT(error_of([&] { TokenShard(folder / "a.tokens", PayloadCheck::kHash); }),
              HasSubstr("corrupt: the hash of its tokens"));
}

TEST(TokenShard, TruncatedWhileInUseIsAnErrorAndNoSignal) {
  DataFolder folder;
  write_shard(folder / "a.tokens", counting<uint16_t>(100'000), 65'536);
  const TokenShard shard(folder / "a.tokens", PayloadCheck::kHash);
  std::filesystem::resize_file(folder / "a.tokens", 100);
  std::vector<int32_t> out(10);
  EXPECT_THAT(
      error_of([&] { shard.read(90'000, out); }),
      AllOf(StartsWith("3: file was truncated while in use: expected 200064 bytes, found 100"),
            HasSubstr("a.tokens")));
}

struct HeaderCase {
  const char* name;
  ShardHeader header;
  const char* message;
};
class ForgedHeader : public testing::TestWithParam<HeaderCase> {};

// Hashes that match prove nothing about the fields: a file may be made to deceive.
TEST_P(ForgedHeader, IsRefusedThoughItsHashMatches) {
  const auto bytes = encode_shard_header(GetParam().header);
  EXPECT_THAT(error_of([&] { decode_shard_header(bytes, "forged.tokens"); }),
              AllOf(StartsWith("3: "), HasSubstr(GetParam().message), HasSubstr("forged.tokens")));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, ForgedHeader,
    testing::Values(HeaderCase{"NoTokens", {1, 256, 0, 0}, "claims 0 tokens"},
                    HeaderCase{"ManyTokens", {4, 256, ~uint64_t{0} / 4, 0}, "tokens"},
                    HeaderCase{"ThreeBytes", {3, 256, 1, 0}, "3 bytes a token"},
                    HeaderCase{"ZeroBytes", {0, 256, 1, 0}, "0 bytes a token"},
                    HeaderCase{"NoVocabulary", {1, 0, 1, 0}, "a vocabulary of 0"},
                    HeaderCase{"WideVocabulary", {1, 257, 1, 0}, "a vocabulary of 257"},
                    HeaderCase{"NegativeIds", {4, 0x80000000, 1, 0}, "a vocabulary of 2147483648"}),
    [](const auto& instance) { return std::string(instance.param.name); });

TEST(TokenShard, OfANewerFormatVersionSaysSo) {
  auto bytes = encode_shard_header({1, 256, 10, 0});
  bytes[8] = std::byte{3};
  EXPECT_THAT(error_of([&] { decode_shard_header(bytes, "new.tokens"); }),
              HasSubstr("format version 3, this program reads 1 and 2"));
}

TEST(ShardWriter, LeavesNoReadableShardBehindWhenItIsNotFinished) {
  DataFolder folder;
  {
    ShardWriter writer({.path = folder / "a.tokens", .token_bytes = 1, .vocab_size = 256});
    writer.append(std::as_bytes(std::span(std::string_view("abc"))));
    EXPECT_EQ(writer.token_count(), 3u);
  }
  EXPECT_THAT(error_of([&] { TokenShard(folder / "a.tokens", PayloadCheck::kSizeOnly); }),
              HasSubstr("is not a token shard"));
}

TEST(ShardWriter, RefusesAVocabularyThatItsTokensCannotHold) {
  DataFolder folder;
  EXPECT_THAT(error_of([&] {
                ShardWriter({.path = folder / "a.tokens", .token_bytes = 1, .vocab_size = 257});
              }),
              StartsWith("1: "));
}

}  // namespace
}  // namespace flashshard::data
