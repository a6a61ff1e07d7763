#include "runtime/data/text_lines.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kernels/error.h"

namespace flashshard::data {
namespace {

/// Bytes of the well-formed character that `text` begins with; 0 if there is none.
size_t character_bytes(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto in = [&](size_t i, int low, int high) { return byte(i) >= low && byte(i) <= high; };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t size = lead >= 0xc2 && lead <= 0xdf   ? 2
                      : lead >= 0xe0 && lead <= 0xef ? 3
                      : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                     : 0;
  if (size == 0 || text.size() < size) return 0;
  // No second way to write a character, no surrogates, nothing beyond U+10FFFF.
  const int low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const int high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  if (!in(1, low, high)) return 0;
  for (size_t i = 2; i < size; ++i) {
    if (!in(i, 0x80, 0xbf)) return 0;
  }
  return size;
}

}  // namespace

LineReader::LineReader(std::filesystem::path path,
                       std::function<void(std::string_view, int64_t)> line)
    : path_(std::move(path)), line_(std::move(line)) {}

void LineReader::hand_out(std::string_view line) { line_(line, ++number_); }

void LineReader::append(std::span<const std::byte> chunk) {
  std::string_view text(reinterpret_cast<const char*>(chunk.data()), chunk.size());
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    const size_t size = newline == std::string_view::npos ? text.size() : newline + 1;
    if (unfinished_.size() + size > kLongestLine) {
      throw Error(ExitCode::kBadData,
                  fmt::format("line {} has more than {} bytes", number_ + 1, kLongestLine),
                  path_.string(), "break it up");
    }
    if (newline == std::string_view::npos) {
      unfinished_ += text;
    } else if (unfinished_.empty()) {
      hand_out(text.substr(0, size));
    } else {
      unfinished_ += text.substr(0, size);
      hand_out(std::exchange(unfinished_, {}));
    }
    text.remove_prefix(size);
  }
}

void LineReader::finish() {
  if (!unfinished_.empty()) hand_out(std::exchange(unfinished_, {}));
}

std::optional<size_t> first_invalid_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t size = character_bytes(text.substr(at));
    if (size == 0) return at;
    at += size;
  }
  return std::nullopt;
}

}  // namespace flashshard::data
