// The safetensors file format (github.com/huggingface/safetensors): 8 bytes little-endian header
// length, a JSON header
//   {"__metadata__": {string: string}, NAME: {"dtype": D, "shape": [...], "data_offsets": [begin,
//   end]}, ...}
// and the tensors' bytes, row-major, little-endian, one after another without holes.
//
// The reader takes what the format's reference takes, white space before the header's '{' included,
// and is stricter in two points: a key may not stand twice and a tensor may have no further fields.
// Files may come from anywhere: every size is checked before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/checkpoint/file_system.h"

namespace flashshard::checkpoint {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;           // "BF16", "F32", "I8", "U16", ...
  std::vector<int64_t> shape;  // every dimension >= 0; empty: a scalar
  uint64_t begin = 0;          // bytes of the file's data
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
  friend bool operator==(const SafetensorsEntry&, const SafetensorsEntry&) = default;
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::vector<SafetensorsEntry> entries;  // in the order of their bytes
  uint64_t data_offset = 0;               // of the data in the file
  uint64_t data_bytes = 0;

  const SafetensorsEntry* find(std::string_view name) const;
};

/// The largest header that the format allows.
constexpr uint64_t kLargestSafetensorsHeader = 100'000'000;

/// Bits of an element, for the dtypes that the format names. Those of less than 8 bits are packed:
/// a tensor of them has whole bytes.
std::optional<uint64_t> bits_of_safetensors_dtype(std::string_view dtype);

/// Sets begin and end of every entry (in the order given), data_offset and data_bytes, and returns
/// the file's bytes up to its data, padded with spaces to a multiple of 8. Entries of larger
/// elements first keep every tensor aligned.
std::string lay_out_safetensors(SafetensorsHeader& header);

/// Checks and parses a JSON header for a file with `data_bytes` of data. Throws Error(kCheckpoint)
/// that names the tensor and the field; `where` is the file. data_offset is left 0.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes,
                                           const std::string& where);
SafetensorsHeader read_safetensors_header(const ByteSource& file);

/// A text from a file, in quotes, on one line and of bounded length: fit for an error message.
std::string in_quotes(std::string_view text);

}  // namespace flashshard::checkpoint
