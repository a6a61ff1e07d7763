// Shard files under zstd: a series of zstd frames of kZstdFrameBytes of the content each (the last
// may have fewer), then the seek table of zstd's seekable format (contrib/seekable_format in
// github.com/facebook/zstd) in a skippable frame. `zstd -d` gives back the content; here any range
// of it is read through the frames that hold it, so that no reader needs more memory than for a
// plain file.
//
//   skippable frame: 0x184D2A5E, its size; for each frame: bytes in the file, bytes of content;
//                    number of frames, descriptor (1 byte, 0: no checksums), 0x8F92EAB1
//   (numbers of 4 bytes, little-endian)
//
// What a frame may decode to is known before it is decoded: a file is read with the size that its
// content must have, and nothing in it can ask for more memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/hash.h"

namespace flashshard::checkpoint {

constexpr std::string_view kZstdSuffix = ".zst";
/// Part of the format. Entropy coding, all that such bytes gain from, needs no larger ones.
constexpr uint64_t kZstdFrameBytes = uint64_t{1} << 18;

class ZstdOutputFile final : public ByteSink {
 public:
  /// `level`: 1 to 19. Throws write_error.
  ZstdOutputFile(FileSystem& file_system, std::string path, int level);

  void write(std::span<const std::byte> bytes) override;
  void finish() override;

  /// Of the file as it stands on disk; after finish().
  uint64_t bytes() const { return bytes_; }
  Hash128 hash() const { return hash_.digest(); }

 private:
  struct Free {
    void operator()(void* context) const noexcept;
  };
  void compress(std::span<const std::byte> frame);
  void append(std::span<const std::byte> bytes);

  OutputFile file_;
  int level_;
  std::unique_ptr<void, Free> context_;
  std::vector<std::byte> pending_;  // of a frame that is not full
  std::vector<std::byte> compressed_;
  std::string table_;
  uint32_t frames_ = 0;
  uint64_t bytes_ = 0;
  Xxh3 hash_;
};

class ZstdInputFile final : public ByteSource {
 public:
  /// `content_bytes`: what the file must decode to. Throws Error(kCheckpoint) when its seek table
  /// says anything else.
  ZstdInputFile(InputFile file, uint64_t content_bytes);

  const std::string& path() const override { return file_.path(); }
  uint64_t size() const override { return content_bytes_; }
  /// Throws Error(kCheckpoint) for a frame that does not decode to its bytes. Not for several
  /// threads at once: frames are decoded in one place.
  void read(uint64_t offset, std::span<std::byte> bytes) const override;

 private:
  struct Free {
    void operator()(void* context) const noexcept;
  };
  void read_table();
  uint64_t content_of(uint64_t frame) const;
  void decode(uint64_t frame, std::span<std::byte> content) const;
  [[noreturn]] void fail(std::string_view what) const;

  InputFile file_;
  uint64_t content_bytes_;
  std::vector<uint64_t> begins_;  // of the frames in the file, and their end
  std::unique_ptr<void, Free> context_;
  mutable std::vector<std::byte> compressed_;
  mutable std::vector<std::byte> content_;  // of the frame that was read in part last
  mutable std::optional<uint64_t> in_hand_;
};

}  // namespace flashshard::checkpoint
