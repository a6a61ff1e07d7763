// A whole safetensors file: what is accepted is laid out as the format says, and is written back to
// the same tensors.
#include "runtime/checkpoint/safetensors.h"

#include <span>

#include "tests/fuzz/one_file.h"
#include "tests/fuzz/target.h"

namespace {

using namespace flashshard::checkpoint;  // NOLINT(google-build-using-namespace)
using flashshard::fuzz::OneFile;
using flashshard::fuzz::require;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  OneFile file_system(std::as_bytes(std::span(data, size)));
  const InputFile file(file_system, "input.safetensors");
  SafetensorsHeader header;
  if (!flashshard::fuzz::accepts(flashshard::ExitCode::kCheckpoint,
                                 [&] { header = read_safetensors_header(file); })) {
    return 0;
  }
  require(header.data_offset + header.data_bytes == size, "the file is not header and data");
  uint64_t next = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    require(entry.begin == next && entry.end >= entry.begin, "a hole or an overlap");
    require(header.find(entry.name) == &entry, "a name stands twice");
    next = entry.end;
  }
  require(next == header.data_bytes, "data that no tensor has");
  const auto entries = header.entries;
  const std::string again = lay_out_safetensors(header);
  const auto read =
      parse_safetensors_header(std::string_view(again).substr(8), header.data_bytes, "again");
  require(read.entries == entries && read.metadata == header.metadata,
          "what was written back is something else");
  return 0;
}
