// Lines come out whole however the text is cut into chunks, and what is not UTF-8 is found.
#include "runtime/data/text_lines.h"

#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

std::vector<std::string> lines_of(std::string_view text, size_t chunk) {
  std::vector<std::string> lines;
  LineReader reader("a.txt", [&](std::string_view line, int64_t number) {
    lines.emplace_back(line);
    EXPECT_EQ(number, std::ssize(lines));
  });
  for (size_t at = 0; at < text.size(); at += chunk) {
    const auto part = text.substr(at, chunk);
    reader.append(std::as_bytes(std::span(part)));
  }
  reader.finish();
  return lines;
}

TEST(LineReader, GivesTheSameLinesForChunksOfEverySize) {
  const std::vector<std::string> expected = {"one\n", "\n", "three\r\n", "the last"};
  for (size_t chunk = 1; chunk < 25; ++chunk) {
    EXPECT_EQ(lines_of("one\n\nthree\r\nthe last", chunk), expected) << chunk;
  }
  EXPECT_EQ(lines_of("one\n", 2), std::vector<std::string>{"one\n"});
  EXPECT_TRUE(lines_of("", 1).empty());
}

TEST(Utf8, IsFoundWellFormedUpToTheLastCharacter) {
  EXPECT_EQ(first_invalid_utf8("a \u00e9 \u20ac \U0001f600 \u0800 \U0010ffff"), std::nullopt);
}

struct Invalid {
  const char* text;
  size_t at;
};
class InvalidUtf8 : public testing::TestWithParam<Invalid> {};

TEST_P(InvalidUtf8, IsFoundAtItsFirstByte) {
  EXPECT_EQ(first_invalid_utf8(GetParam().text), GetParam().at);
}

INSTANTIATE_TEST_SUITE_P(
    Texts, InvalidUtf8,
    testing::Values(Invalid{"ab\xff", 2}, Invalid{"\x80", 0}, Invalid{"a\xc3", 1},
                    Invalid{"\xc0\x80", 0},  // a long form of byte 0
                    Invalid{"\xe0\x9f\xbf", 0}, Invalid{"\xf0\x8f\xbf\xbf", 0},  // long forms
                    Invalid{"\xed\xa0\x80", 0},                                  // a surrogate
                    Invalid{"\xf4\x90\x80\x80", 0}, Invalid{"\xf5\x80\x80\x80", 0},
                    Invalid{"\xe2\x82\x28", 0}, Invalid{"\xe2\x28\xac", 0}));

}  // namespace
}  // namespace flashshard::data
