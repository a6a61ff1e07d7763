#include "runtime/data/token_shard.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "kernels/error.h"

namespace flashshard::data {

static_assert(std::endian::native == std::endian::little,
              "token shards are little-endian and are read without conversion");

namespace {

constexpr std::array<char, 8> kMagic = {'F', 'S', 'T', 'O', 'K', 'E', 'N', 'S'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kVersionWithMask = 2;
constexpr uint64_t kMostTokens = uint64_t{1} << 60;  // so that a size in bytes cannot overflow

// Byte offsets of the header's fields.
constexpr size_t kVersionAt = 8;
constexpr size_t kHeaderBytesAt = 12;
constexpr size_t kTokenBytesAt = 16;
constexpr size_t kVocabSizeAt = 20;
constexpr size_t kTokenCountAt = 24;
constexpr size_t kPayloadHashAt = 32;
constexpr size_t kFlagsAt = 40;
constexpr size_t kReservedAt = 44;
constexpr size_t kHeaderHashAt = 56;

constexpr uint32_t kMaskFlag = 1;

uint64_t mask_bytes(uint64_t tokens) { return tokens / 8 + (tokens % 8 != 0 ? 1 : 0); }

template <typename T>
T load(std::span<const std::byte> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

template <typename T>
void store(std::span<std::byte> bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(T));
}

uint64_t hash_of(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

bool vocabulary_fits(uint32_t vocab_size, uint32_t token_bytes) {
  if (token_bytes != 1 && token_bytes != 2 && token_bytes != 4) return false;
  const uint64_t ids =
      std::min<uint64_t>(uint64_t{1} << (8 * token_bytes), std::numeric_limits<int32_t>::max());
  return vocab_size >= 1 && vocab_size <= ids;
}

[[noreturn]] void refuse(const std::string& what, const std::filesystem::path& path) {
  throw Error(ExitCode::kBadData, what, path.string(),
              "prepare the data again with `flashshard prepare`");
}

// Widens tokens to int32 and returns the largest id. One plain loop, so that the compiler
// vectorises it.
template <typename Token>
uint32_t widen(const std::byte* tokens, std::span<int32_t> out) {
  uint32_t largest = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    Token token;
    std::memcpy(&token, tokens + i * sizeof(Token), sizeof(Token));
    largest = std::max(largest, static_cast<uint32_t>(token));
    out[i] = static_cast<int32_t>(token);
  }
  return largest;
}

uint32_t widen_tokens(uint32_t token_bytes, const std::byte* tokens, std::span<int32_t> out) {
  switch (token_bytes) {
    case 1:
      return widen<uint8_t>(tokens, out);
    case 2:
      return widen<uint16_t>(tokens, out);
    default:
      return widen<uint32_t>(tokens, out);
  }
}

}  // namespace

bool is_token_shard(std::span<const std::byte> file) {
  return file.size() >= kMagic.size() &&
         std::memcmp(file.data(), kMagic.data(), kMagic.size()) == 0;
}

std::array<std::byte, kShardHeaderBytes> encode_shard_header(const ShardHeader& header) {
  std::array<std::byte, kShardHeaderBytes> bytes = {};
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  store(bytes, kVersionAt, header.loss_mask ? kVersionWithMask : kVersion);
  store(bytes, kHeaderBytesAt, static_cast<uint32_t>(kShardHeaderBytes));
  store(bytes, kTokenBytesAt, header.token_bytes);
  store(bytes, kVocabSizeAt, header.vocab_size);
  store(bytes, kTokenCountAt, header.token_count);
  store(bytes, kPayloadHashAt, header.payload_hash);
  store(bytes, kFlagsAt, header.loss_mask ? kMaskFlag : 0);
  store(bytes, kHeaderHashAt, hash_of(std::span(bytes).first(kHeaderHashAt)));
  return bytes;
}

ShardHeader decode_shard_header(std::span<const std::byte> file,
                                const std::filesystem::path& path) {
  if (file.size() < kShardHeaderBytes) {
    refuse(fmt::format("token shard is truncated: expected at least {} bytes, found {}",
                       kShardHeaderBytes, file.size()),
           path);
  }
  if (!is_token_shard(file)) refuse("is not a token shard: its first 8 bytes differ", path);
  const auto version = load<uint32_t>(file, kVersionAt);
  if (version != kVersion && version != kVersionWithMask) {
    refuse(fmt::format("token shard has format version {}, this program reads {} and {}", version,
                       kVersion, kVersionWithMask),
           path);
  }
  if (load<uint64_t>(file, kHeaderHashAt) != hash_of(file.first(kHeaderHashAt))) {
    refuse("token shard's header is corrupt: its hash does not match", path);
  }
  const auto reserved = file.subspan(kReservedAt, kHeaderHashAt - kReservedAt);
  const bool loss_mask = version == kVersionWithMask;
  if (load<uint32_t>(file, kHeaderBytesAt) != kShardHeaderBytes ||
      load<uint32_t>(file, kFlagsAt) != (loss_mask ? kMaskFlag : 0) ||
      std::any_of(reserved.begin(), reserved.end(),
                  [](std::byte b) { return b != std::byte{0}; })) {
    refuse("token shard's header has an unknown layout", path);
  }
  const ShardHeader header = {.token_bytes = load<uint32_t>(file, kTokenBytesAt),
                              .vocab_size = load<uint32_t>(file, kVocabSizeAt),
                              .token_count = load<uint64_t>(file, kTokenCountAt),
                              .payload_hash = load<uint64_t>(file, kPayloadHashAt),
                              .loss_mask = loss_mask};
  if (!vocabulary_fits(header.vocab_size, header.token_bytes)) {
    refuse(fmt::format("token shard claims {} bytes a token and a vocabulary of {}",
                       header.token_bytes, header.vocab_size),
           path);
  }
  if (header.token_count == 0 || header.token_count > kMostTokens) {
    refuse(fmt::format("token shard claims {} tokens", header.token_count), path);
  }
  return header;
}

void ShardWriter::HashState::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

ShardWriter::ShardWriter(const Options& options)
    : file_(options.path),
      header_{.token_bytes = options.token_bytes,
              .vocab_size = options.vocab_size,
              .token_count = 0,
              .payload_hash = 0,
              .loss_mask = options.loss_mask},
      hash_(XXH3_createState()) {
  if (!vocabulary_fits(options.vocab_size, options.token_bytes)) {
    throw Error(ExitCode::kInternal, "token width and vocabulary do not fit each other",
                options.path.string());
  }
  if (hash_ == nullptr || XXH3_64bits_reset(hash_.get()) != XXH_OK) throw std::bad_alloc();
  file_.append(std::array<std::byte, kShardHeaderBytes>{});
}

ShardWriter::~ShardWriter() = default;
ShardWriter::ShardWriter(ShardWriter&&) noexcept = default;

void ShardWriter::append(std::span<const std::byte> tokens, Counted counted) {
  file_.append(tokens);
  XXH3_64bits_update(hash_.get(), tokens.data(), tokens.size());
  const uint64_t first = header_.token_count;
  header_.token_count += tokens.size() / header_.token_bytes;
  if (!header_.loss_mask) return;
  mask_.resize(mask_bytes(header_.token_count));
  if (counted == Counted::kNo) return;
  for (uint64_t i = first; i < header_.token_count; ++i) mask_[i / 8] |= std::byte{1} << (i % 8);
}

ShardHeader ShardWriter::finish() {
  file_.append(mask_);
  XXH3_64bits_update(hash_.get(), mask_.data(), mask_.size());
  header_.payload_hash = XXH3_64bits_digest(hash_.get());
  file_.write_at(0, encode_shard_header(header_));
  file_.commit();
  return header_;
}

TokenShard::TokenShard(const std::filesystem::path& path, PayloadCheck check)
    : file_(path), header_(decode_shard_header(file_.bytes(), path)) {
  const uint64_t expected = kShardHeaderBytes + header_.token_count * header_.token_bytes +
                            (header_.loss_mask ? mask_bytes(header_.token_count) : 0);
  if (file_.bytes().size() != expected) {
    refuse(fmt::format("token shard {}: expected {} bytes, found {}",
                       file_.bytes().size() < expected ? "is truncated" : "is too long", expected,
                       file_.bytes().size()),
           path);
  }
  if (check == PayloadCheck::kHash &&
      hash_of(file_.bytes().subspan(kShardHeaderBytes)) != header_.payload_hash) {
    refuse("token shard is corrupt: the hash of its tokens does not match its header", path);
  }
}

TokenShard::TokenShard(MappedFile file, const ShardHeader& header, size_t tokens_at)
    : file_(std::move(file)), header_(header), tokens_at_(tokens_at) {}

int64_t TokenShard::measure(int32_t token) {
  constexpr size_t kBlock = size_t{1} << 16;  // tokens
  constexpr auto kIds = static_cast<uint32_t>(std::numeric_limits<int32_t>::max());
  uint32_t largest = 0;
  int64_t found = 0;
  std::vector<int32_t> block(kBlock);
  for (uint64_t at = 0; at < header_.token_count; at += kBlock) {
    const auto count = static_cast<size_t>(std::min<uint64_t>(kBlock, header_.token_count - at));
    largest =
        std::max(largest, widen_tokens(header_.token_bytes, tokens() + at * header_.token_bytes,
                                       std::span(block).first(count)));
    if (largest >= kIds) {
      throw Error(
          ExitCode::kBadData,
          fmt::format("token id {} among tokens {} to {} is no id", largest, at, at + count - 1),
          path().string(), "ids are at most 2147483646: check the file's token type");
    }
    found += std::ranges::count(std::span(block).first(count), token);
  }
  header_.vocab_size = largest + 1;
  header_.payload_hash = hash_of({tokens(), header_.token_count * header_.token_bytes});
  return found;
}

void TokenShard::hide_uncounted(uint64_t position, std::span<int32_t> out) const {
  if (!header_.loss_mask) return;
  file_.check_not_shrunk();
  const std::byte* const mask = tokens() + header_.token_count * header_.token_bytes;
  for (size_t i = 0; i < out.size(); ++i) {
    const uint64_t token = position + i;
    if ((mask[token / 8] >> (token % 8) & std::byte{1}) == std::byte{0}) out[i] = kUncountedTarget;
  }
}

void TokenShard::read(uint64_t position, std::span<int32_t> out) const {
  file_.check_not_shrunk();
  const std::byte* const first = tokens() + position * header_.token_bytes;
  if (widen_tokens(header_.token_bytes, first, out) < header_.vocab_size) return;
  // Ids of 2^31 and more are negative here, so the comparison is unsigned.
  const auto bad = std::find_if(out.begin(), out.end(), [this](int32_t token) {
    return static_cast<uint32_t>(token) >= header_.vocab_size;
  });
  refuse(fmt::format("token id {} at position {} is beyond the vocabulary of {}",
                     static_cast<uint32_t>(*bad),
                     position + static_cast<uint64_t>(bad - out.begin()), header_.vocab_size),
         path());
}

}  // namespace flashshard::data
