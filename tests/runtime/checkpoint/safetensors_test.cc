// The safetensors reader takes what the format allows and nothing else; the writer's files are
// such.
#include "runtime/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string with_length(const std::string& header, const std::string& data = "") {
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return file + header + data;
}

std::string error_of(const std::function<void()>& body, ExitCode code) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    return error.what();
  }
  return "";
}

TEST(Safetensors, AFileOfTheFormatsOwnPackageIsRead) {
  const InputFile file(posix_file_system(),
                       FLASHSHARD_TEST_DATA "/runtime/checkpoint/golden/foreign.safetensors");
  const SafetensorsHeader header = read_safetensors_header(file);
  EXPECT_EQ(header.metadata.at("note"), "made by make_foreign.py");
  ASSERT_EQ(header.entries.size(), 5u);
  const SafetensorsEntry* weight = header.find("model.weight");
  ASSERT_NE(weight, nullptr);
  EXPECT_EQ(weight->dtype, "BF16");
  EXPECT_THAT(weight->shape, ElementsAre(3, 4));
  std::vector<uint16_t> values(12);
  file.read(header.data_offset + weight->begin, std::as_writable_bytes(std::span(values)));
  EXPECT_EQ(values[0], 0x0000);
  EXPECT_EQ(values[11], 0x4130);  // 11
  EXPECT_TRUE(header.find("scalar")->shape.empty());
  EXPECT_EQ(header.find("scalar")->bytes(), 4u);
  EXPECT_EQ(header.find("empty")->bytes(), 0u);
  EXPECT_NE(header.find("n\u00e4me \"quoted\""), nullptr);
  EXPECT_EQ(header.find("other"), nullptr);
}

TEST(Safetensors, WhatIsLaidOutIsReadBackAndAligned) {
  SafetensorsHeader header;
  header.metadata = {{"shards", R"({"a":[0,1]})"}};
  header.entries = {
      {"w", "F32", {2, 3}}, {"\"\n", "BF16", {5}}, {"none", "I8", {0, 7}}, {"c", "I8", {3}}};
  const std::string bytes = lay_out_safetensors(header);
  EXPECT_EQ(bytes.size() % 8, 0u);
  EXPECT_EQ(header.data_offset, bytes.size());
  EXPECT_EQ(header.data_bytes, 24u + 10u + 3u);

  test::TemporaryFolder folder;
  test::write_text(folder / "f", bytes + std::string(header.data_bytes, 'x'));
  const auto read = read_safetensors_header(InputFile(posix_file_system(), folder / "f"));
  EXPECT_EQ(read.entries, header.entries);
  EXPECT_EQ(read.metadata, header.metadata);
  EXPECT_EQ(read.data_offset, header.data_offset);
}

struct BadHeader {
  std::string name;
  std::string json;
  uint64_t data_bytes;
  std::string says;
};

class BadSafetensorsHeader : public ::testing::TestWithParam<BadHeader> {};

TEST_P(BadSafetensorsHeader, IsRefusedWithTensorAndField) {
  const BadHeader& bad = GetParam();
  const std::string error =
      error_of([&] { parse_safetensors_header(bad.json, bad.data_bytes, "some.safetensors"); },
               ExitCode::kCheckpoint);
  EXPECT_THAT(error, HasSubstr(bad.says));
  EXPECT_THAT(error, HasSubstr("some.safetensors"));
  EXPECT_EQ(error.find('\n'), std::string::npos) << "one line";
}

std::string tensor(const std::string& body) { return R"({"t":{)" + body + "}}"; }
const std::string kGood = R"("dtype":"U8","shape":[4],"data_offsets":[0,4])";

INSTANTIATE_TEST_SUITE_P(
    Cases, BadSafetensorsHeader,
    ::testing::Values(
        BadHeader{"Empty", "", 0, "begin with '{'"},
        BadHeader{"OnlySpace", " \n\t\r", 0, "begin with '{'"},
        BadHeader{"List", " []", 0, "begin with '{'"},
        BadHeader{"FormFeedBefore", "\f{}", 0, "begin with '{'"},
        BadHeader{"ByteOrderMark", "\xef\xbb\xbf{}", 0, "begin with '{'"},
        BadHeader{"CutShort", R"({"t":{"dtype":)", 0, "no JSON"},
        BadHeader{"SomethingBehind", "{} x", 0, "no JSON"},
        BadHeader{"ZeroByteBehind", std::string("{}\0{", 4), 0, "zero byte"},
        BadHeader{"BadUtf8", "{\"\xff\":{}}", 0, "no JSON"},
        BadHeader{"Comment", "{/**/}", 0, "no JSON"},
        BadHeader{"TensorIsNoObject", R"({"t":1})", 0, "a number where"},
        BadHeader{"TensorIsAList", R"({"t":[1]})", 0, "an array where"},
        BadHeader{"TensorIsNull", R"({"t":null})", 0, "null where"},
        BadHeader{"TensorIsTrue", R"({"t":true})", 0, "a boolean where"},
        BadHeader{"TensorTwice", R"({"t":{)" + kGood + R"(},"t":{)" + kGood + "}}", 4,
                  "\"t\" stands twice"},
        BadHeader{"MetadataTwice", R"({"__metadata__":{},"__metadata__":{}})", 0, "stands twice"},
        BadHeader{"MetadataKeyTwice", R"({"__metadata__":{"a":"1","a":"2"}})", 0,
                  "\"a\" stands twice"},
        BadHeader{"MetadataIsNumber", R"({"__metadata__":{"a":1}})", 0, "a number where"},
        BadHeader{"MetadataIsNested", R"({"__metadata__":{"a":{}}})", 0, "an object where"},
        BadHeader{"MetadataIsString", R"({"__metadata__":"a"})", 0, "a string where"},
        BadHeader{"FieldTwice", tensor(R"("dtype":"U8",)" + kGood), 4, "\"dtype\" stands twice"},
        BadHeader{"UnknownField", tensor(R"("extra":1,)" + kGood), 4, "unknown field \"extra\""},
        BadHeader{"NoDType", tensor(R"("shape":[4],"data_offsets":[0,4])"), 4, "dtype is missing"},
        BadHeader{"NoShape", tensor(R"("dtype":"U8","data_offsets":[0,4])"), 4, "shape is missing"},
        BadHeader{"NoOffsets", tensor(R"("dtype":"U8","shape":[4])"), 4, "data_offsets is missing"},
        BadHeader{"UnknownDType", tensor(R"("dtype":"U9","shape":[4],"data_offsets":[0,4])"), 4,
                  "unknown dtype \"U9\""},
        BadHeader{"DTypeInLowerCase", tensor(R"("dtype":"f32","shape":[1],"data_offsets":[0,4])"),
                  4, "unknown dtype \"f32\""},
        BadHeader{"HalfAByte", tensor(R"("dtype":"F4","shape":[7],"data_offsets":[0,4])"), 4,
                  "28 bits are no whole bytes"},
        BadHeader{"SubByteSizeDiffers",
                  tensor(R"("dtype":"F6_E3M2","shape":[8],"data_offsets":[0,8])"), 8,
                  "8 bytes, its shape and dtype have 6"},
        BadHeader{"ElementsOverflowThoughEmpty",
                  tensor(R"("dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0])"),
                  0, "more elements than 64 bits"},
        BadHeader{"BitsOverflow",
                  tensor(R"("dtype":"U8","shape":[2305843009213693952],"data_offsets":[0,0])"), 0,
                  "more elements than 64 bits"},
        BadHeader{
            "OffsetsAtTheEndOf64Bits",
            tensor(
                R"("dtype":"U8","shape":[4],"data_offsets":[18446744073709551612,18446744073709551615])"),
            4, "goes on at 0"},
        BadHeader{"SameBytesTwice",
                  R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                  R"("b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                  2, "\"b\""},
        BadHeader{"TensorTwiceInAnotherSpelling",
                  R"({"t":{)" + kGood + R"(},"\u0074":{)" + kGood + "}}", 4, "\"t\" stands twice"},
        BadHeader{"LoneSurrogate", R"({"\ud800":{)" + kGood + "}}", 4, "no JSON"},
        BadHeader{"ControlCharacterInAName", "{\"\n\":{" + kGood + "}}", 4, "no JSON"},
        BadHeader{"TrailingComma", R"({"t":{)" + kGood + "},}", 4, "no JSON"},
        BadHeader{"MinusZero", tensor(R"("dtype":"U8","shape":[-0],"data_offsets":[0,0])"), 0,
                  "a negative number"},
        BadHeader{"DTypeIsNumber", tensor(R"("dtype":8,"shape":[4],"data_offsets":[0,4])"), 4,
                  "a number where"},
        BadHeader{"NegativeDimension", tensor(R"("dtype":"U8","shape":[-4],"data_offsets":[0,4])"),
                  4, "a negative number"},
        BadHeader{"FractionalDimension",
                  tensor(R"("dtype":"U8","shape":[4.0],"data_offsets":[0,4])"), 4,
                  "not an integer"},
        BadHeader{"NestedShape", tensor(R"("dtype":"U8","shape":[[4]],"data_offsets":[0,4])"), 4,
                  "an array where"},
        BadHeader{"DimensionBeyond63Bits",
                  tensor(R"("dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,4])"), 4,
                  "beyond 64 bits"},
        BadHeader{"DimensionBeyond64Bits",
                  tensor(R"("dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,4])"), 4,
                  "not an integer of 64 bits"},
        BadHeader{"ElementsOverflow",
                  tensor(R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0,
                  "more elements than 64 bits"},
        BadHeader{"BytesOverflow",
                  tensor(R"("dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0])"), 0,
                  "more elements than 64 bits"},
        BadHeader{"OneOffset", tensor(R"("dtype":"U8","shape":[4],"data_offsets":[4])"), 4,
                  "wants two numbers"},
        BadHeader{"ThreeOffsets", tensor(R"("dtype":"U8","shape":[4],"data_offsets":[0,4,8])"), 4,
                  "wants two numbers"},
        BadHeader{"OffsetsReversed", tensor(R"("dtype":"U8","shape":[4],"data_offsets":[4,0])"), 4,
                  "data_offsets"},
        BadHeader{"SizeDiffers", tensor(R"("dtype":"U8","shape":[3],"data_offsets":[0,4])"), 4,
                  "4 bytes, its shape and dtype have 3"},
        BadHeader{"BeyondTheFile", tensor(kGood), 3, "3 bytes of data, the tensors have 4"},
        BadHeader{"DataBehind", tensor(kGood), 5, "5 bytes of data, the tensors have 4"},
        BadHeader{"HoleBefore", tensor(R"("dtype":"U8","shape":[4],"data_offsets":[4,8])"), 8,
                  "goes on at 0"},
        BadHeader{"HoleBetween",
                  R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                  R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                  3, "\"b\""},
        BadHeader{"Overlap",
                  R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                  R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                  3, "\"b\""},
        BadHeader{"NameWithControlCharacters",
                  "{\"a\\nb\\u0007\":{\"dtype\":\"X\",\"shape\":[],\"data_offsets\":[0,1]}}", 1,
                  "\"a\\nb\\u0007\""},
        BadHeader{"LongName",
                  "{\"" + std::string(5000, 'n') +
                      "\":{\"dtype\":\"X\",\"shape\":[],\"data_offsets\":[0,1]}}",
                  1, "nnn\"..."}),
    [](const auto& test_case) { return test_case.param.name; });

TEST(Safetensors, WhiteSpaceAroundTheHeaderAndNoMetadataAreTheFormats) {
  const std::string json = " \n\t" + tensor(kGood) + "  ";
  EXPECT_EQ(parse_safetensors_header(json, 4, "f").entries.size(), 1u);
  EXPECT_TRUE(parse_safetensors_header("{}", 0, "f").entries.empty());
  EXPECT_TRUE(parse_safetensors_header(R"({"__metadata__":null})", 0, "f").metadata.empty());
  // Empty tensors may stand between others, at the same offset.
  const auto header =
      parse_safetensors_header(R"({"b":{"dtype":"U8","shape":[0,9],"data_offsets":[2,2]},)"
                               R"("c":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},)"
                               R"("a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                               3, "f");
  EXPECT_EQ(header.entries[0].name, "a");
  EXPECT_EQ(header.entries[1].name, "b");
}

TEST(Safetensors, EveryTypeOfTheFormatHasItsBits) {
  for (const auto& [dtype, bytes] : std::vector<std::pair<std::string, int>>{
           {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"BOOL", 8},    {"U8", 8},
           {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
           {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
           {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
           {"I64", 64},        {"U64", 64}}) {
    // Eight elements have as many bytes as one has bits.
    const std::string json = R"({"t":{"dtype":")" + dtype +
                             R"(","shape":[2,4],"data_offsets":[0,)" + std::to_string(bytes) +
                             "]}}";
    EXPECT_NO_THROW(parse_safetensors_header(json, static_cast<uint64_t>(bytes), "f")) << dtype;
  }
}

struct BadFile {
  std::string name;
  std::string bytes;
  std::string says;
};
class BadSafetensorsFile : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadSafetensorsFile, IsRefusedBeforeItsLengthIsUsed) {
  test::TemporaryFolder folder;
  test::write_text(folder / "f", GetParam().bytes);
  const InputFile file(posix_file_system(), folder / "f");
  const std::string error = error_of([&] { read_safetensors_header(file); }, ExitCode::kCheckpoint);
  EXPECT_THAT(error, HasSubstr(GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    Cases, BadSafetensorsFile,
    ::testing::Values(
        BadFile{"Empty", "", "shorter than its header's length"},
        BadFile{"SevenBytes", "1234567", "shorter than its header's length"},
        BadFile{"HeaderBeyondTheFile", with_length("{}").substr(0, 9), "in a file of 9"},
        BadFile{"HeaderAsLongAsCanBe", std::string(8, '\xff') + "{}", "more than 100000000"},
        BadFile{"HeaderOf101MB", std::string("\x40\x23\x05\x06\0\0\0\0{}", 10), "a header of 101"},
        BadFile{"NoHeader", std::string(8, '\0'), "begin with '{'"},
        BadFile{"DataMissing", with_length(tensor(kGood), "123"), "3 bytes of data"}),
    [](const auto& test_case) { return test_case.param.name; });

TEST(Safetensors, DeeplyNestedHeadersEndAtTheFirstWrongLevel) {
  const std::string deep = R"({"t":)" + std::string(1'000'000, '[');
  EXPECT_THAT(error_of([&] { parse_safetensors_header(deep, 0, "f"); }, ExitCode::kCheckpoint),
              HasSubstr("an array where"));
}

}  // namespace
}  // namespace flashshard::checkpoint
