// A token shard: a header of 64 bytes, then tokens of 1, 2 or 4 bytes, then the loss mask if there
// is one, all little-endian. The layout stands in docs/data.md; hashes are XXH3-64.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "runtime/data/document_bounds.h"
#include "runtime/data/file.h"

struct XXH3_state_s;

namespace flashshard::data {

inline constexpr size_t kShardHeaderBytes = 64;
inline constexpr int32_t kUncountedTarget = -1;  // a target that no loss counts

struct ShardHeader {
  uint32_t token_bytes = 1;   // 1, 2 or 4
  uint32_t vocab_size = 0;    // every token id is below it; 1 to 2^31 - 1
  uint64_t token_count = 0;   // at least 1
  uint64_t payload_hash = 0;  // XXH3-64 of the bytes after the header
  bool loss_mask = false;     // one bit a token follows the tokens

  bool operator==(const ShardHeader&) const = default;
};

std::array<std::byte, kShardHeaderBytes> encode_shard_header(const ShardHeader& header);

/// Checks magic, version, the header's hash and every field; `path` names the file in errors.
/// Throws Error(kBadData).
ShardHeader decode_shard_header(std::span<const std::byte> file, const std::filesystem::path& path);

/// True when the bytes begin with a token shard's magic.
bool is_token_shard(std::span<const std::byte> file);

/// Whether tokens count in the loss when they are targets.
enum class Counted : uint8_t { kNo, kYes };

/// Writes one shard in a stream. The header is written last: an unfinished file is no shard.
class ShardWriter {
 public:
  struct Options {
    std::filesystem::path path;
    uint32_t token_bytes = 1;
    uint32_t vocab_size = 256;
    bool loss_mask = false;  // without one every token counts
  };
  /// Throws like OutputFile; Error(kInternal) for a vocabulary that the token bytes cannot hold.
  explicit ShardWriter(const Options& options);
  ~ShardWriter();
  ShardWriter(ShardWriter&&) noexcept;
  ShardWriter& operator=(ShardWriter&&) = delete;

  /// `tokens`: whole tokens of `token_bytes` bytes, little-endian. The caller vouches for the ids'
  /// range.
  void append(std::span<const std::byte> tokens, Counted counted = Counted::kYes);
  uint64_t token_count() const { return header_.token_count; }
  /// Writes the header and makes the file durable. At least one token must have been appended.
  ShardHeader finish();

 private:
  struct HashState {
    void operator()(XXH3_state_s* state) const;
  };
  OutputFile file_;
  ShardHeader header_;
  std::vector<std::byte> mask_;  // bit i % 8 of byte i / 8 is set: token i counts
  std::unique_ptr<XXH3_state_s, HashState> hash_;
};

/// How thoroughly a shard is read when it is opened. Either way the header, the file's size and, at
/// each read, the range of the token ids are checked.
enum class PayloadCheck {
  kHash,      // one pass over the whole payload
  kSizeOnly,  // for data whose reading costs minutes
};

/// A shard mapped read-only. Members may be called from several threads at once.
class TokenShard {
 public:
  /// Throws Error(kBadData) that names the file: truncated (expected and found bytes), corrupt, of
  /// another format.
  TokenShard(const std::filesystem::path& path, PayloadCheck check);
  /// Tokens of another program's file, from byte `tokens_at` on; the caller has checked that they
  /// lie in it.
  TokenShard(MappedFile file, const ShardHeader& header, size_t tokens_at);

  const ShardHeader& header() const { return header_; }
  const std::filesystem::path& path() const { return file_.path(); }
  /// Tokens [position, position + out.size()) as int32; the range lies within the shard.
  /// Throws Error(kBadData) with shard and position for an id beyond the vocabulary, and when the
  /// file has shrunk.
  void read(uint64_t position, std::span<int32_t> out) const;
  /// Sets out[i] to -1 where token position + i does not count in the loss.
  void hide_uncounted(uint64_t position, std::span<int32_t> out) const;
  /// One pass over all tokens, for a file that says neither how many ids there are nor what its
  /// bytes should be: takes the largest id and the hash into the header. Returns how often `token`
  /// occurs. Throws Error(kBadData) for an id of 2^31 - 1 or more.
  int64_t measure(int32_t token = kNoToken);
  /// What says where documents begin, if a file beside this one does.
  const std::optional<DocumentIndex>& documents() const { return documents_; }
  void set_documents(DocumentIndex documents) { documents_.emplace(std::move(documents)); }

 private:
  const std::byte* tokens() const { return file_.bytes().data() + tokens_at_; }

  MappedFile file_;
  ShardHeader header_;
  size_t tokens_at_ = kShardHeaderBytes;
  std::optional<DocumentIndex> documents_;
};

}  // namespace flashshard::data
