// A whole safetensors file: what is accepted is laid out as the format says, and is written back to
// the same tensors.
#include "runtime/checkpoint/safetensors.h"

#include <cerrno>
#include <cstring>
#include <span>

#include "tests/fuzz/target.h"

namespace {

using namespace flashshard::checkpoint;  // NOLINT(google-build-using-namespace)
using flashshard::fuzz::require;

/// One file that is these bytes, for reading.
class OneFile final : public FileSystem {
 public:
  explicit OneFile(std::span<const std::byte> bytes) : bytes_(bytes) {}

  int open(const std::string&) override { return 0; }
  int close(int) override { return 0; }
  int64_t size(int) override { return static_cast<int64_t>(bytes_.size()); }
  int64_t read(int, uint64_t offset, std::span<std::byte> out) override {
    require(offset <= bytes_.size() && out.size() <= bytes_.size() - offset,
            "a read beyond the file");
    std::memcpy(out.data(), bytes_.data() + offset, out.size());
    return static_cast<int64_t>(out.size());
  }

  int create(const std::string&) override { return -EROFS; }
  int64_t write(int, std::span<const std::byte>) override { return -EROFS; }
  int sync(int) override { return -EROFS; }
  int sync_directory(const std::string&) override { return -EROFS; }
  int make_directory(const std::string&) override { return -EROFS; }
  int remove_file(const std::string&) override { return -EROFS; }
  int remove_directory(const std::string&) override { return -EROFS; }
  int rename(const std::string&, const std::string&) override { return -EROFS; }
  int list(const std::string&, std::vector<std::string>&) override { return -EROFS; }
  int kind(const std::string&, PathKind& kind) override {
    kind = PathKind::kFile;
    return 0;
  }

 private:
  std::span<const std::byte> bytes_;
};

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
