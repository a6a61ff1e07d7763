#include "runtime/checkpoint/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

namespace flashshard::checkpoint {
namespace {

using nlohmann::json;

constexpr std::string_view kMetadataKey = "__metadata__";
constexpr uint64_t kLengthBytes = 8;

// clang-format off
constexpr auto kDTypes = std::to_array<std::pair<std::string_view, uint64_t>>({
    {"F4", 4}, {"F6_E2M3", 6}, {"F6_E3M2", 6},
    {"BOOL", 8}, {"U8", 8}, {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
    {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16},
    {"I32", 32}, {"U32", 32}, {"F32", 32},
    {"I64", 64}, {"U64", 64}, {"F64", 64}, {"C64", 64}});
// clang-format on

[[noreturn]] void fail(const std::string& where, std::string_view what) {
  throw Error(ExitCode::kCheckpoint, fmt::format("bad safetensors file: {}", what), where);
}

/// Builds a header from the events of the JSON parser; whatever the format does not have at a place
/// ends it.
class HeaderBuilder final : public nlohmann::json_sax<json> {
 public:
  explicit HeaderBuilder(const std::string& where) : where_(where) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool start_object(size_t) override {
    switch (at_) {
      case At::kFile:
        return go(At::kTop);
      case At::kMetadataObject:
        return go(At::kMetadata);
      case At::kTensorObject:
        entry_ = {};
        entry_.name = name_;
        fields_.clear();
        return go(At::kTensor);
      default:
        return unexpected("an object");
    }
  }

  bool key(std::string& text) override {
    if (at_ == At::kTop) {
      if (!names_.insert(text).second)
        fail(where_, fmt::format("{} stands twice", in_quotes(text)));
      name_ = text;
      return go(text == kMetadataKey ? At::kMetadataObject : At::kTensorObject);
    }
    if (at_ == At::kMetadata) {
      if (!header_.metadata.try_emplace(text).second) {
        fail(where_, fmt::format("__metadata__ key {} stands twice", in_quotes(text)));
      }
      metadata_key_ = text;
      return go(At::kMetadataValue);
    }
    if (!fields_.insert(text).second) tensor_fail(fmt::format("{} stands twice", in_quotes(text)));
    if (text == "dtype") return go(At::kDType);
    if (text == "shape") return go(At::kShape);
    if (text == "data_offsets") return go(At::kOffsets);
    tensor_fail(fmt::format("unknown field {}", in_quotes(text)));
  }

  bool string(std::string& text) override {
    if (at_ == At::kMetadataValue) {
      header_.metadata[metadata_key_] = text;
      return go(At::kMetadata);
    }
    if (at_ != At::kDType) return unexpected("a string");
    entry_.dtype = text;
    return go(At::kTensor);
  }

  bool start_array(size_t) override {
    if (at_ == At::kShape) return go(At::kShapeNumber);
    if (at_ == At::kOffsets) return go(At::kOffsetNumber);
    return unexpected("an array");
  }

  bool number_unsigned(uint64_t number) override {
    if (at_ == At::kShapeNumber) {
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        tensor_fail("shape: a dimension beyond 64 bits");
      }
      entry_.shape.push_back(static_cast<int64_t>(number));
      return true;
    }
    if (at_ != At::kOffsetNumber) return unexpected("a number");
    if (offsets_++ > 1) tensor_fail("data_offsets: wants two numbers");
    (offsets_ == 1 ? entry_.begin : entry_.end) = number;
    return true;
  }

  bool end_array() override {
    if (at_ == At::kOffsetNumber && std::exchange(offsets_, 0) != 2) {
      tensor_fail("data_offsets: wants two numbers");
    }
    return go(At::kTensor);
  }

  bool end_object() override {
    if (at_ == At::kTop) return go(At::kFile);
    if (at_ == At::kTensor) {
      for (const char* field : {"dtype", "shape", "data_offsets"}) {
        if (!fields_.contains(field)) tensor_fail(fmt::format("{} is missing", field));
      }
      header_.entries.push_back(std::move(entry_));
    }
    return go(At::kTop);
  }

  bool null() override {
    if (at_ == At::kMetadataObject) return go(At::kTop);  // no metadata
    return unexpected("null");
  }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(int64_t) override { return unexpected("a negative number"); }
  bool number_float(double, const std::string&) override {
    return unexpected("a number that is not an integer of 64 bits");
  }
  bool binary(json::binary_t&) override { return unexpected("binary data"); }
  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    fail(where_, fmt::format("the header is no JSON, at byte {}", kLengthBytes + position));
  }

 private:
  enum class At {
    kFile,
    kTop,
    kMetadataObject,
    kMetadata,
    kMetadataValue,
    kTensorObject,
    kTensor,
    kDType,
    kShape,
    kShapeNumber,
    kOffsets,
    kOffsetNumber,
  };

  bool go(At at) {
    at_ = at;
    return true;
  }
  [[noreturn]] void tensor_fail(std::string_view what) const {
    fail(where_, fmt::format("tensor {}: {}", in_quotes(name_), what));
  }
  [[noreturn]] bool unexpected(std::string_view what) const {
    fail(where_, fmt::format("{} where the header may not have one, in {}", what,
                             name_.empty() ? "its beginning" : in_quotes(name_)));
  }

  const std::string& where_;
  At at_ = At::kFile;
  SafetensorsHeader header_;
  std::set<std::string> names_;
  std::set<std::string> fields_;
  std::string name_;
  std::string metadata_key_;
  SafetensorsEntry entry_;
  int offsets_ = 0;
};

/// Bits of an entry by its dtype and shape, or nothing when they do not fit 64 bits.
std::optional<uint64_t> bits_by_shape(const SafetensorsEntry& entry, uint64_t element_bits) {
  uint64_t elements = 1;
  for (const int64_t dimension : entry.shape) {
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(dimension), &elements)) {
      return std::nullopt;
    }
  }
  uint64_t bits = 0;
  if (__builtin_mul_overflow(elements, element_bits, &bits)) return std::nullopt;
  return bits;
}

void check_entries(const SafetensorsHeader& header, const std::string& where) {
  uint64_t next = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    const auto tensor_fail = [&](std::string_view what) {
      fail(where, fmt::format("tensor {}: {}", in_quotes(entry.name), what));
    };
    const auto element_bits = bits_of_safetensors_dtype(entry.dtype);
    if (!element_bits) tensor_fail(fmt::format("unknown dtype {}", in_quotes(entry.dtype)));
    const auto bits = bits_by_shape(entry, *element_bits);
    if (!bits) tensor_fail("shape: more elements than 64 bits count");
    if (*bits % 8 != 0) tensor_fail(fmt::format("shape: {} bits are no whole bytes", *bits));
    if (entry.begin != next || entry.end < entry.begin) {
      tensor_fail(fmt::format("data_offsets: [{}, {}] where the data goes on at {}", entry.begin,
                              entry.end, next));
    }
    if (entry.bytes() != *bits / 8) {
      tensor_fail(fmt::format("data_offsets: {} bytes, its shape and dtype have {}", entry.bytes(),
                              *bits / 8));
    }
    next = entry.end;
  }
  if (next != header.data_bytes) {
    fail(where, fmt::format("{} bytes of data, the tensors have {}", header.data_bytes, next));
  }
}

}  // namespace

const SafetensorsEntry* SafetensorsHeader::find(std::string_view name) const {
  const auto found = std::ranges::find(entries, name, &SafetensorsEntry::name);
  return found == entries.end() ? nullptr : &*found;
}

std::optional<uint64_t> bits_of_safetensors_dtype(std::string_view dtype) {
  for (const auto& [name, bits] : kDTypes) {
    if (name == dtype) return bits;
  }
  return std::nullopt;
}

std::string lay_out_safetensors(SafetensorsHeader& header) {
  std::string text = fmt::format("{{\"{}\":{}", kMetadataKey, json(header.metadata).dump());
  uint64_t next = 0;
  for (SafetensorsEntry& entry : header.entries) {
    const auto bits = bits_by_shape(entry, bits_of_safetensors_dtype(entry.dtype).value());
    entry.begin = next;
    entry.end = next += bits.value() / 8;
    text += fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                        json(entry.name).dump(), entry.dtype, fmt::join(entry.shape, ","),
                        entry.begin, entry.end);
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  header.data_offset = kLengthBytes + text.size();
  header.data_bytes = next;

  std::string file(kLengthBytes, '\0');
  for (size_t i = 0; i < kLengthBytes; ++i) {
    file[i] = static_cast<char>(uint64_t{text.size()} >> (8 * i) & 0xff);
  }
  return file + text;
}

SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t data_bytes,
                                           const std::string& where) {
  // The parser would skip a byte order mark and take a zero byte for the end.
  const size_t begin = text.find_first_not_of(" \t\n\r");
  if (begin == std::string_view::npos || text[begin] != '{') {
    fail(where, "the header does not begin with '{'");
  }
  if (text.find('\0') != std::string_view::npos) fail(where, "a zero byte in the header");
  HeaderBuilder builder(where);
  json::sax_parse(text.begin(), text.end(), &builder);
  SafetensorsHeader header = builder.take();
  header.data_bytes = data_bytes;
  std::ranges::stable_sort(header.entries,
                           [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
                             return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                           });
  check_entries(header, where);
  return header;
}

SafetensorsHeader read_safetensors_header(const ByteSource& file) {
  if (file.size() < kLengthBytes) fail(file.path(), "shorter than its header's length");
  std::array<std::byte, kLengthBytes> raw = {};
  file.read(0, raw);
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) length |= std::to_integer<uint64_t>(raw[i]) << (8 * i);
  if (length > kLargestSafetensorsHeader) {
    fail(file.path(),
         fmt::format("a header of {} bytes, more than {}", length, kLargestSafetensorsHeader));
  }
  if (length > file.size() - kLengthBytes) {
    fail(file.path(), fmt::format("a header of {} bytes in a file of {}", length, file.size()));
  }
  std::string text(length, '\0');
  file.read(kLengthBytes, std::as_writable_bytes(std::span(text)));
  SafetensorsHeader header =
      parse_safetensors_header(text, file.size() - kLengthBytes - length, file.path());
  header.data_offset = kLengthBytes + length;
  return header;
}

std::string in_quotes(std::string_view text) {
  constexpr size_t kMost = 120;
  const std::string shown(text.substr(0, kMost));
  return json(shown).dump(-1, ' ', true, json::error_handler_t::replace) +
         (text.size() > kMost ? "..." : "");
}

}  // namespace flashshard::checkpoint
