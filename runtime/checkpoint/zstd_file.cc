#include "runtime/checkpoint/zstd_file.h"

#include <fmt/format.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace flashshard::checkpoint {
namespace {

constexpr uint32_t kTableMagic = 0x184d2a5e;
constexpr uint32_t kFooterMagic = 0x8f92eab1;
constexpr uint64_t kNumberBytes = sizeof(uint32_t);
constexpr uint64_t kTableHeadBytes = 2 * kNumberBytes;
constexpr uint64_t kEntryBytes = 2 * kNumberBytes;
constexpr uint64_t kFooterBytes = 2 * kNumberBytes + 1;

void append_number(std::string& bytes, uint64_t number) {
  for (uint64_t i = 0; i < kNumberBytes; ++i) bytes += static_cast<char>(number >> (8 * i) & 0xff);
}

uint32_t number_at(std::span<const std::byte> bytes, uint64_t at) {
  uint32_t number = 0;
  for (uint64_t i = 0; i < kNumberBytes; ++i) {
    number |= std::to_integer<uint32_t>(bytes[at + i]) << (8 * i);
  }
  return number;
}

ZSTD_CCtx* compressor(void* context) { return static_cast<ZSTD_CCtx*>(context); }

void set(ZSTD_CCtx* context, ZSTD_cParameter parameter, int value) {
  const size_t result = ZSTD_CCtx_setParameter(context, parameter, value);
  if (ZSTD_isError(result) == 0) return;
  throw Error(ExitCode::kInternal, fmt::format("zstd: {}", ZSTD_getErrorName(result)));
}

}  // namespace

void ZstdOutputFile::Free::operator()(void* context) const noexcept {
  ZSTD_freeCCtx(compressor(context));
}

ZstdOutputFile::ZstdOutputFile(FileSystem& file_system, std::string path, int level)
    : file_(file_system, std::move(path)), level_(level), context_(ZSTD_createCCtx()) {
  if (context_ == nullptr) throw std::bad_alloc();
  set(compressor(context_.get()), ZSTD_c_compressionLevel, level_);
  // For other programs' `zstd -t`; what is read here has hashes of its own.
  set(compressor(context_.get()), ZSTD_c_checksumFlag, 1);
  compressed_.resize(ZSTD_compressBound(kZstdFrameBytes));
}

void ZstdOutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (pending_.empty() && bytes.size() >= kZstdFrameBytes) {
      compress(bytes.first(kZstdFrameBytes));
      bytes = bytes.subspan(kZstdFrameBytes);
      continue;
    }
    const size_t taken = std::min<size_t>(kZstdFrameBytes - pending_.size(), bytes.size());
    pending_.insert(pending_.end(), bytes.begin(),
                    bytes.begin() + static_cast<std::ptrdiff_t>(taken));
    bytes = bytes.subspan(taken);
    if (pending_.size() == kZstdFrameBytes) {
      compress(pending_);
      pending_.clear();
    }
  }
}

void ZstdOutputFile::compress(std::span<const std::byte> frame) {
  const size_t size = ZSTD_compress2(compressor(context_.get()), compressed_.data(),
                                     compressed_.size(), frame.data(), frame.size());
  if (ZSTD_isError(size) != 0) {
    throw Error(ExitCode::kInternal, fmt::format("zstd: {}", ZSTD_getErrorName(size)));
  }
  append(std::span(compressed_).first(size));
  append_number(table_, size);
  append_number(table_, frame.size());
  ++frames_;
}

void ZstdOutputFile::append(std::span<const std::byte> bytes) {
  file_.write(bytes);
  hash_.add(bytes);
  bytes_ += bytes.size();
}

void ZstdOutputFile::finish() {
  if (!pending_.empty()) compress(pending_);
  std::string head;
  append_number(head, kTableMagic);
  append_number(head, table_.size() + kFooterBytes);
  append_number(table_, frames_);
  table_ += '\0';
  append_number(table_, kFooterMagic);
  append(bytes_of(head));
  append(bytes_of(table_));
  file_.finish();
}

void ZstdInputFile::Free::operator()(void* context) const noexcept {
  ZSTD_freeDCtx(static_cast<ZSTD_DCtx*>(context));
}

ZstdInputFile::ZstdInputFile(InputFile file, uint64_t content_bytes)
    : file_(std::move(file)), content_bytes_(content_bytes), context_(ZSTD_createDCtx()) {
  if (context_ == nullptr) throw std::bad_alloc();
  read_table();
}

void ZstdInputFile::fail(std::string_view what) const {
  throw Error(ExitCode::kCheckpoint, fmt::format("bad zstd file: {}", what), file_.path());
}

uint64_t ZstdInputFile::content_of(uint64_t frame) const {
  return std::min(kZstdFrameBytes, content_bytes_ - frame * kZstdFrameBytes);
}

void ZstdInputFile::read_table() {
  const uint64_t frames =
      content_bytes_ / kZstdFrameBytes + (content_bytes_ % kZstdFrameBytes == 0 ? 0 : 1);
  const uint64_t table_bytes = kTableHeadBytes + frames * kEntryBytes + kFooterBytes;
  if (file_.size() < table_bytes) {
    fail(fmt::format("{} bytes cannot hold the {} frames that its content has", file_.size(),
                     frames));
  }
  std::vector<std::byte> table(table_bytes);
  file_.read(file_.size() - table_bytes, table);
  const uint64_t footer = table_bytes - kFooterBytes;
  if (number_at(table, 0) != kTableMagic ||
      number_at(table, kNumberBytes) != table_bytes - kTableHeadBytes ||
      number_at(table, footer) != frames || table[footer + kNumberBytes] != std::byte{0} ||
      number_at(table, footer + kNumberBytes + 1) != kFooterMagic) {
    fail("its seek table is not that of its content");
  }
  const uint64_t most = ZSTD_compressBound(kZstdFrameBytes);
  begins_.push_back(0);
  for (uint64_t frame = 0; frame < frames; ++frame) {
    const uint64_t entry = kTableHeadBytes + frame * kEntryBytes;
    const uint64_t stored = number_at(table, entry);
    if (stored == 0 || stored > most ||
        number_at(table, entry + kNumberBytes) != content_of(frame)) {
      fail(fmt::format("its seek table gives frame {} another size than it can have", frame));
    }
    begins_.push_back(begins_.back() + stored);
  }
  if (begins_.back() != file_.size() - table_bytes) fail("its frames do not fill it");
}

void ZstdInputFile::decode(uint64_t frame, std::span<std::byte> content) const {
  compressed_.resize(begins_[frame + 1] - begins_[frame]);
  file_.read(begins_[frame], compressed_);
  const size_t size = ZSTD_decompressDCtx(static_cast<ZSTD_DCtx*>(context_.get()), content.data(),
                                          content.size(), compressed_.data(), compressed_.size());
  if (ZSTD_isError(size) != 0) {
    fail(fmt::format("frame {} cannot be decoded: {}", frame, ZSTD_getErrorName(size)));
  }
  if (size != content.size()) {
    fail(fmt::format("frame {} decodes to {} bytes instead of {}", frame, size, content.size()));
  }
}

void ZstdInputFile::read(uint64_t offset, std::span<std::byte> bytes) const {
  if (offset > content_bytes_ || bytes.size() > content_bytes_ - offset) {
    fail(fmt::format("its content ends at byte {}, wanted {} bytes at {}", content_bytes_,
                     bytes.size(), offset));
  }
  while (!bytes.empty()) {
    const uint64_t frame = offset / kZstdFrameBytes;
    const uint64_t begin = offset % kZstdFrameBytes;
    const uint64_t taken = std::min<uint64_t>(content_of(frame) - begin, bytes.size());
    if (taken == content_of(frame)) {
      decode(frame, bytes.first(taken));
    } else {
      if (in_hand_ != frame) {
        in_hand_.reset();
        content_.resize(content_of(frame));
        decode(frame, content_);
        in_hand_ = frame;
      }
      std::memcpy(bytes.data(), content_.data() + begin, taken);
    }
    offset += taken;
    bytes = bytes.subspan(taken);
  }
}

}  // namespace flashshard::checkpoint
