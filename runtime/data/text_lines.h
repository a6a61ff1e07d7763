// Lines of a text that is read in chunks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace flashshard::data {

inline constexpr size_t kLongestLine = size_t{1} << 28;  // bytes

/// Puts chunks together and hands out whole lines.
class LineReader {
 public:
  /// `line` sees each line with its newline (the last one may have none) and its number from 1.
  /// `path` names the file in errors.
  LineReader(std::filesystem::path path,
             std::function<void(std::string_view line, int64_t number)> line);
  /// Throws Error(kBadData) for a line of more than kLongestLine bytes, and what `line` throws.
  void append(std::span<const std::byte> chunk);
  /// Hands out what follows the last newline.
  void finish();

 private:
  void hand_out(std::string_view line);

  std::filesystem::path path_;
  std::function<void(std::string_view, int64_t)> line_;
  std::string unfinished_;
  int64_t number_ = 0;
};

/// Position of the first byte that is not part of well-formed UTF-8 (RFC 3629); nothing if all is.
std::optional<size_t> first_invalid_utf8(std::string_view text);

}  // namespace flashshard::data
