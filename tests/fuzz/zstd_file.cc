// A shard file under zstd, behind three bytes that say how much it must decode to: as it is, and as
// one frame with the seek table that belongs to it, so that decoding is reached. What is accepted
// gives the same bytes in whatever ranges it is read.
#include "runtime/checkpoint/zstd_file.h"

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "tests/fuzz/one_file.h"
#include "tests/fuzz/target.h"

namespace {

using namespace flashshard::checkpoint;  // NOLINT(google-build-using-namespace)
using flashshard::fuzz::accepts;
using flashshard::fuzz::OneFile;
using flashshard::fuzz::require;

constexpr size_t kSizeBytes = 3;

std::string number(uint64_t value) {
  std::string bytes;
  for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(value >> shift & 0xff);
  return bytes;
}

void read(std::string_view bytes, uint64_t content_bytes) {
  OneFile file_system(bytes_of(bytes));
  accepts(flashshard::ExitCode::kCheckpoint, [&] {
    const ZstdInputFile file(InputFile(file_system, "input.zst"), content_bytes);
    std::vector<std::byte> whole(content_bytes);
    file.read(0, whole);
    constexpr uint64_t kPiece = 100'003;
    std::vector<std::byte> piece;
    for (uint64_t at = 0; at < content_bytes; at += kPiece) {
      piece.resize(std::min(kPiece, content_bytes - at));
      file.read(at, piece);
      require(std::ranges::equal(piece, std::span(whole).subspan(at, piece.size())),
              "a part is not that of the whole");
    }
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kSizeBytes) return 0;
  const uint64_t content_bytes =
      data[0] | static_cast<uint64_t>(data[1]) << 8 | static_cast<uint64_t>(data[2]) << 16;
  const std::string file(reinterpret_cast<const char*>(data) + kSizeBytes, size - kSizeBytes);
  read(file, content_bytes);
  const uint64_t one_frame = std::min(content_bytes, kZstdFrameBytes);
  if (one_frame == 0) return 0;
  read(file + number(0x184d2a5e) + number(17) + number(file.size()) + number(one_frame) +
           number(1) + '\0' + number(0x8f92eab1),
       one_frame);
  return 0;
}
