#include "runtime/data/foreign_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/error.h"
#include "runtime/data/file.h"

namespace flashshard::data {
namespace {

namespace fs = std::filesystem;

// llm.c: 256 int32 words, then the tokens. Words 0 to 2: magic, version, tokens.
struct LlmcFormat {
  int32_t magic;
  int32_t version;
  uint32_t token_bytes;
  int32_t document_token;  // begins each document
};
constexpr std::array kLlmcFormats = {LlmcFormat{20240520, 1, 2, 50256},    // GPT-2's ids
                                     LlmcFormat{20240801, 7, 4, 128000}};  // Llama 3's ids
constexpr size_t kLlmcHeaderBytes = 256 * sizeof(int32_t);

// Megatron-LM's index: magic, version (u64), type (u8), sequences (u64), documents + 1 (u64), then
// int32 sizes and int64 byte offsets of the sequences, then int64 first sequences of the documents.
constexpr std::string_view kIndexMagic("MMIDIDX\0\0", 9);
constexpr uint64_t kIndexVersion = 1;
constexpr size_t kIndexHeaderBytes = 9 + 8 + 1 + 8 + 8;
constexpr const char* kIndexHint = "make the pair again, or copy both files of one pair";

[[noreturn]] void refuse(const std::string& what, const fs::path& path, const char* hint = "") {
  throw Error(ExitCode::kBadData, what, path.string(), hint);
}

template <typename T>
T load(std::span<const std::byte> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

fs::path with_extension(fs::path path, const char* extension) {
  return path.replace_extension(extension);
}

// Not replace_extension: a prefix may have a dot of its own.
fs::path appended(const fs::path& prefix, const char* extension) {
  return prefix.string() + extension;
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

TokenShard open_llmc_shard(const fs::path& path) {
  MappedFile file(path);
  const auto bytes = file.bytes();
  if (bytes.size() < kLlmcHeaderBytes) {
    refuse(fmt::format("is too short for a shard of llm.c: {} bytes, the header alone has {}",
                       bytes.size(), kLlmcHeaderBytes),
           path);
  }
  const auto magic = load<int32_t>(bytes, 0);
  const auto format = std::ranges::find(kLlmcFormats, magic, &LlmcFormat::magic);
  if (format == kLlmcFormats.end()) {
    refuse(fmt::format("is no shard of llm.c: its magic is {}, not 20240520 or 20240801", magic),
           path, "a Megatron-LM file needs its .idx file beside it; text goes through `prepare`");
  }
  if (const auto version = load<int32_t>(bytes, 4); version != format->version) {
    refuse(fmt::format("shard of llm.c has version {}, magic {} is read in version {}", version,
                       magic, format->version),
           path);
  }
  const auto tokens = load<int32_t>(bytes, 8);
  if (tokens < 1) refuse(fmt::format("shard of llm.c claims {} tokens", tokens), path);
  const uint64_t expected =
      kLlmcHeaderBytes + uint64_t{static_cast<uint32_t>(tokens)} * format->token_bytes;
  if (bytes.size() != expected) {
    refuse(fmt::format("shard of llm.c {}: expected {} bytes, found {}",
                       bytes.size() < expected ? "is truncated" : "is too long", expected,
                       bytes.size()),
           path);
  }
  const ShardHeader header = {.token_bytes = format->token_bytes,
                              .token_count = static_cast<uint64_t>(tokens)};
  return TokenShard(std::move(file), header, kLlmcHeaderBytes);
}

struct MegatronIndex {
  uint32_t token_bytes = 0;
  uint64_t tokens = 0;
  DocumentIndex::Tables tables;
};

// Codes of Megatron-LM's DType. Ids are never negative, so int32 reads as uint32.
uint32_t index_token_bytes(uint8_t code, const fs::path& path) {
  switch (code) {
    case 1:  // uint8
      return 1;
    case 8:  // uint16
      return 2;
    case 4:  // int32
      return 4;
    default:
      refuse(fmt::format(
                 "index has the token type {}; uint8 (1), int32 (4) and uint16 (8) are read", code),
             path);
  }
}

void check_sequences(std::span<const std::byte> sizes, std::span<const std::byte> offsets,
                     const fs::path& path, MegatronIndex& index) {
  const uint64_t sequences = offsets.size() / sizeof(int64_t);
  for (uint64_t i = 0; i < sequences; ++i) {
    const auto size = load<int32_t>(sizes, i * sizeof(int32_t));
    const auto offset = load<int64_t>(offsets, i * sizeof(int64_t));
    if (size < 0) refuse(fmt::format("index gives sequence {} the size {}", i, size), path);
    if (offset < 0 || static_cast<uint64_t>(offset) != index.tokens * index.token_bytes) {
      refuse(fmt::format("index puts sequence {} at byte {}, the sequences before it end at {}", i,
                         offset, index.tokens * index.token_bytes),
             path, kIndexHint);
    }
    index.tokens += static_cast<uint64_t>(size);
  }
}

void check_documents(std::span<const std::byte> documents, uint64_t sequences,
                     const fs::path& path) {
  const uint64_t entries = documents.size() / sizeof(int64_t);
  int64_t before = 0;
  for (uint64_t i = 0; i < entries; ++i) {
    const auto first = load<int64_t>(documents, i * sizeof(int64_t));
    const bool is_last = i + 1 == entries;
    if (first < before || (i == 0 && first != 0) || static_cast<uint64_t>(first) > sequences ||
        (is_last && static_cast<uint64_t>(first) != sequences)) {
      refuse(fmt::format("index begins document {} at sequence {} of {}", i, first, sequences),
             path, kIndexHint);
    }
    before = first;
  }
}

MegatronIndex read_index(const MappedFile& file) {
  const auto bytes = file.bytes();
  const fs::path& path = file.path();
  if (bytes.size() < kIndexHeaderBytes ||
      std::memcmp(bytes.data(), kIndexMagic.data(), kIndexMagic.size()) != 0) {
    refuse("is no index of Megatron-LM: it does not begin with MMIDIDX", path);
  }
  if (const auto version = load<uint64_t>(bytes, 9); version != kIndexVersion) {
    refuse(fmt::format("index has version {}, this program reads {}", version, kIndexVersion),
           path);
  }
  MegatronIndex index;
  index.token_bytes = index_token_bytes(load<uint8_t>(bytes, 17), path);
  const auto sequences = load<uint64_t>(bytes, 18);
  const auto documents = load<uint64_t>(bytes, 26);
  // Bounded by the file's size before anything is multiplied.
  const uint64_t room = bytes.size() - kIndexHeaderBytes;
  if (sequences > room / 12 || documents > room / 8 || sequences * 12 + documents * 8 != room) {
    refuse(fmt::format("index of {} sequences and {} document bounds does not have {} bytes",
                       sequences, documents, bytes.size()),
           path, kIndexHint);
  }
  if (documents == 0) refuse("index has no document bounds", path, kIndexHint);
  const auto offsets = bytes.subspan(kIndexHeaderBytes + sequences * 4);
  check_sequences(bytes.subspan(kIndexHeaderBytes, sequences * 4), offsets.first(sequences * 8),
                  path, index);
  check_documents(offsets.subspan(sequences * 8), sequences, path);
  index.tables = {.offsets_at = kIndexHeaderBytes + sequences * 4,
                  .sequences = sequences,
                  .bounds_at = kIndexHeaderBytes + sequences * 12,
                  .bounds = documents,
                  .token_bytes = index.token_bytes,
                  .tokens = index.tokens};
  return index;
}

TokenShard open_megatron_shard(const fs::path& path, int64_t& documents) {
  MappedFile index_file(with_extension(path, ".idx"));
  const MegatronIndex index = read_index(index_file);
  if (index.tokens == 0) refuse("index holds no tokens", index_file.path());
  MappedFile file(path);
  if (file.bytes().size() != index.tokens * index.token_bytes) {
    refuse(fmt::format("its index says {} tokens of {} bytes, which is not its size of {} bytes",
                       index.tokens, index.token_bytes, file.bytes().size()),
           path, kIndexHint);
  }
  documents += static_cast<int64_t>(index.tables.bounds) - 1;
  const ShardHeader header = {.token_bytes = index.token_bytes, .token_count = index.tokens};
  TokenShard shard(std::move(file), header, 0);
  shard.set_documents(DocumentIndex(std::move(index_file), index.tables));
  return shard;
}

// What begins a document in shards of llm.c with tokens of so many bytes.
DocumentMark llmc_mark(uint32_t token_bytes) {
  const auto format = std::ranges::find(kLlmcFormats, token_bytes, &LlmcFormat::token_bytes);
  return {.token = format->document_token, .place = DocumentMark::Place::kBegin};
}

// The `.bin` files that a path means, in the order of their names.
std::vector<fs::path> data_files(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    if (path.extension() == ".idx") return {with_extension(path, ".bin")};
    if (fs::is_regular_file(path, error)) return {path};
    return {appended(path, ".bin")};
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    if (entry.path().extension() == ".bin") files.push_back(entry.path());
    if (entry.path().extension() == ".idx" && !is_there(with_extension(entry.path(), ".bin"))) {
      refuse("index has no .bin file beside it", entry.path());
    }
  }
  if (error) refuse(fmt::format("cannot list folder: {}", error.message()), path);
  std::ranges::sort(files);
  return files;
}

Split split_of(const fs::path& file, const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored) &&
                 file.filename().string().find("_val") != std::string::npos
             ? Split::kValidation
             : Split::kTrain;
}

}  // namespace

bool is_foreign_data(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) {
    return fs::is_regular_file(path, ignored) ||
           (is_there(appended(path, ".bin")) && is_there(appended(path, ".idx")));
  }
  if (is_there(path / kManifestFileName)) return false;
  fs::directory_iterator entries(path, ignored);
  return std::ranges::any_of(entries, [](const fs::directory_entry& entry) {
    return entry.path().extension() == ".bin" || entry.path().extension() == ".idx";
  });
}

bool is_foreign_shard(const fs::path& path) {
  std::array<char, 9> first = {};
  std::ifstream stream(path, std::ios::binary);
  if (!stream.read(first.data(), first.size())) return false;
  int32_t magic = 0;
  std::memcpy(&magic, first.data(), sizeof(magic));
  return std::string_view(first.data(), first.size()) == kIndexMagic ||
         std::ranges::find(kLlmcFormats, magic, &LlmcFormat::magic) != kLlmcFormats.end() ||
         (path.extension() == ".bin" && is_there(with_extension(path, ".idx")));
}

ForeignData open_foreign_data(const fs::path& path, Split split) {
  ForeignData data;
  std::optional<fs::path> first;
  uint32_t largest_vocabulary = 1;
  for (const fs::path& file : data_files(path)) {
    const bool megatron = is_there(with_extension(file, ".idx"));
    const Split split_here = split_of(file, path);
    TokenShard shard = megatron
                           ? open_megatron_shard(file, data.manifest.totals(split_here).documents)
                           : open_llmc_shard(file);
    const char* const kind = megatron ? "megatron" : "llm.c";
    if (first && (data.manifest.tokenizer != kind ||
                  data.manifest.token_bytes != shard.header().token_bytes)) {
      refuse(fmt::format("its kind of tokens is not that of {}", first->string()), file,
             "put files of one kind into one folder");
    }
    if (!first) first = file;
    data.manifest.tokenizer = kind;
    data.manifest.token_bytes = shard.header().token_bytes;
    if (split_here == split) {
      const DocumentMark mark = megatron ? DocumentMark{} : llmc_mark(data.manifest.token_bytes);
      if (shard.measure(mark.token) > 0) data.mark = mark;
    }
    auto& records = split_here == Split::kTrain ? data.manifest.train : data.manifest.validation;
    records.push_back({.tokens = static_cast<int64_t>(shard.header().token_count),
                       .payload_hash = shard.header().payload_hash});
    if (split_here != split) continue;
    largest_vocabulary = std::max(largest_vocabulary, shard.header().vocab_size);
    data.shards.push_back(std::move(shard));
  }
  data.manifest.vocab_size = largest_vocabulary;
  return data;
}

}  // namespace flashshard::data
