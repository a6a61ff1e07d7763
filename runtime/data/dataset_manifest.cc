#include "runtime/data/dataset_manifest.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <charconv>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/error.h"
#include "runtime/data/file.h"

namespace flashshard::data {

namespace {

// Keeps the fields in the order in which people read them.
using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "flashshard-dataset";
constexpr int64_t kVersion = 2;
// Bytes without end-of-document tokens and loss masks; still read.
constexpr int64_t kOldestVersion = 1;

// Reads fields of one file; each error names the file and the field.
class FieldReader {
 public:
  FieldReader(const Json& object, const std::filesystem::path& path, std::string prefix)
      : object_(object), path_(path), prefix_(std::move(prefix)) {
    if (!object.is_object()) refuse(prefix_, "an object");
  }

  const Json& any(const char* name) const {
    const auto found = object_.find(name);
    if (found == object_.end()) refuse(prefix_ + name, "present");
    return *found;
  }
  const Json& array(const char* name) const {
    const Json& value = any(name);
    if (!value.is_array()) refuse(prefix_ + name, "a list");
    return value;
  }
  std::string text(const char* name) const {
    const Json& value = any(name);
    if (!value.is_string()) refuse(prefix_ + name, "text");
    return value.get<std::string>();
  }
  int64_t integer(const char* name, int64_t least, int64_t most) const {
    const Json& value = any(name);
    const std::string range = fmt::format("an integer from {} to {}", least, most);
    if (!value.is_number_integer()) refuse(prefix_ + name, range);
    // An unsigned value above int64's range would turn negative in get<int64_t>.
    if (value.is_number_unsigned() &&
        value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
      refuse(prefix_ + name, range);
    }
    const auto number = value.get<int64_t>();
    if (number < least || number > most) refuse(prefix_ + name, range);
    return number;
  }
  bool flag(const char* name) const {
    const Json& value = any(name);
    if (!value.is_boolean()) refuse(prefix_ + name, "true or false");
    return value.get<bool>();
  }
  double fraction(const char* name) const {
    const Json& value = any(name);
    if (!value.is_number() || !(value.get<double>() >= 0 && value.get<double>() < 1)) {
      refuse(prefix_ + name, "a number from 0 to below 1");
    }
    return value.get<double>();
  }
  uint64_t hash(const char* name) const {
    const std::string digits = text(name);
    uint64_t value = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (digits.size() != 16 || result.ptr != digits.data() + digits.size()) {
      refuse(prefix_ + name, "16 hexadecimal digits");
    }
    return value;
  }
  [[noreturn]] void refuse(const std::string& field, const std::string& expected) const {
    throw Error(ExitCode::kBadData, fmt::format("field `{}` is not {}", field, expected),
                path_.string(), "prepare the data again with `flashshard prepare`");
  }

 private:
  const Json& object_;
  const std::filesystem::path& path_;
  std::string prefix_;
};

Json to_json(const std::vector<ShardRecord>& shards, Split split) {
  Json list = Json::array();
  for (const ShardRecord& shard : shards) {
    list.push_back({{"file", shard_file_name(split, static_cast<int64_t>(list.size()))},
                    {"tokens", shard.tokens},
                    {"xxh3_64", fmt::format("{:016x}", shard.payload_hash)}});
  }
  return list;
}

Json to_json(const SplitTotals& totals) {
  return {{"documents", totals.documents},
          {"text_bytes", totals.text_bytes},
          {"counted_tokens", totals.counted}};
}

Json to_json(const DatasetManifest& manifest) {
  Json sources = Json::array();
  for (const SourceRecord& source : manifest.sources) {
    sources.push_back({{"name", source.name},
                       {"bytes", source.bytes},
                       {"xxh3_64", fmt::format("{:016x}", source.hash)}});
  }
  return {{"format", kFormat},
          {"version", kVersion},
          {"tokenizer", manifest.tokenizer},
          {"tokenizer_hash", fmt::format("{:016x}", manifest.tokenizer_hash)},
          {"vocab_size", manifest.vocab_size},
          {"end_of_document", manifest.end_of_document},
          {"token_bytes", manifest.token_bytes},
          {"train_tokens", manifest.token_count(Split::kTrain)},
          {"validation_tokens", manifest.token_count(Split::kValidation)},
          {"loss_mask", manifest.loss_mask},
          {"train_totals", to_json(manifest.train_totals)},
          {"validation_totals", to_json(manifest.validation_totals)},
          {"validation_fraction", manifest.validation_fraction},
          {"validation_block_tokens", manifest.validation_block_tokens},
          {"fingerprint", manifest.fingerprint()},
          {"train", to_json(manifest.train, Split::kTrain)},
          {"validation", to_json(manifest.validation, Split::kValidation)},
          {"sources", sources}};
}

std::vector<ShardRecord> read_shards(const FieldReader& root, const std::filesystem::path& path,
                                     Split split) {
  std::vector<ShardRecord> shards;
  int64_t tokens_left = std::numeric_limits<int64_t>::max() / 8;  // the sum may not overflow
  for (const Json& entry : root.array(split_name(split))) {
    const auto index = static_cast<int64_t>(shards.size());
    const FieldReader fields(entry, path, fmt::format("{}[{}].", split_name(split), index));
    const std::string name = shard_file_name(split, index);
    if (fields.text("file") != name) {
      fields.refuse(fmt::format("{}[{}].file", split_name(split), index), name);
    }
    shards.push_back({.tokens = fields.integer("tokens", 1, tokens_left),
                      .payload_hash = fields.hash("xxh3_64")});
    tokens_left -= shards.back().tokens;
  }
  return shards;
}

std::vector<SourceRecord> read_sources(const FieldReader& root, const std::filesystem::path& path) {
  std::vector<SourceRecord> sources;
  for (const Json& entry : root.array("sources")) {
    const FieldReader fields(entry, path, fmt::format("sources[{}].", sources.size()));
    sources.push_back({.name = fields.text("name"),
                       .bytes = fields.integer("bytes", 1, std::numeric_limits<int64_t>::max()),
                       .hash = fields.hash("xxh3_64")});
  }
  return sources;
}

SplitTotals read_totals(const FieldReader& root, const std::filesystem::path& path,
                        const char* name) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const FieldReader fields(root.any(name), path, fmt::format("{}.", name));
  return {.documents = fields.integer("documents", 0, kMost),
          .text_bytes = fields.integer("text_bytes", 0, kMost),
          .counted = fields.integer("counted_tokens", 0, kMost)};
}

// What format version 2 added.
void read_tokenizer(const FieldReader& root, const std::filesystem::path& path,
                    DatasetManifest& manifest) {
  manifest.tokenizer_hash = root.hash("tokenizer_hash");
  manifest.end_of_document = static_cast<int32_t>(
      root.integer("end_of_document", kNoToken, int64_t{manifest.vocab_size} - 1));
  manifest.loss_mask = root.flag("loss_mask");
  manifest.train_totals = read_totals(root, path, "train_totals");
  manifest.validation_totals = read_totals(root, path, "validation_totals");
}

Json parse(const std::filesystem::path& folder, const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) {
    throw Error(ExitCode::kBadData, "data folder does not exist", folder.string(),
                "check the path, or make it with `flashshard prepare`");
  }
  if (!std::filesystem::exists(path, ignored)) {
    throw Error(ExitCode::kBadData, "folder holds no finished data set: it has no dataset.json",
                folder.string(),
                "run `flashshard prepare` on it; an interrupted one can be run again");
  }
  std::ifstream stream(path);
  Json root = Json::parse(stream, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) {
    throw Error(ExitCode::kBadData, "is not valid JSON", path.string(),
                "prepare the data again with `flashshard prepare`");
  }
  return root;
}

}  // namespace

const char* split_name(Split split) { return split == Split::kTrain ? "train" : "validation"; }

std::string shard_file_name(Split split, int64_t index) {
  return fmt::format("{}-{:05}.tokens", split_name(split), index);
}

int64_t DatasetManifest::token_count(Split split) const {
  int64_t sum = 0;
  for (const ShardRecord& shard : shards(split)) sum += shard.tokens;
  return sum;
}

std::optional<double> DatasetManifest::bytes_per_token(Split split) const {
  // Before there were documents, a token was a byte.
  if (tokenizer == "byte" && totals(split) == SplitTotals{}) return 1;
  if (totals(split).text_bytes == 0 || totals(split).counted == 0) return std::nullopt;
  return static_cast<double>(totals(split).text_bytes) / static_cast<double>(totals(split).counted);
}

void DatasetManifest::set_identity(const TokenizerIdentity& identity) {
  tokenizer = identity.kind;
  tokenizer_hash = identity.hash;
  vocab_size = static_cast<uint32_t>(identity.vocab_size);
  end_of_document = identity.end_of_document;
}

std::string DatasetManifest::fingerprint() const {
  std::string content = fmt::format("{} {} {}\n", tokenizer, vocab_size, token_bytes);
  if (tokenizer_hash != 0) content += fmt::format("{:016x}\n", tokenizer_hash);
  for (const Split split : {Split::kTrain, Split::kValidation}) {
    for (const ShardRecord& shard : shards(split)) {
      content +=
          fmt::format("{} {} {:016x}\n", split_name(split), shard.tokens, shard.payload_hash);
    }
  }
  return fmt::format("{:016x}", XXH3_64bits(content.data(), content.size()));
}

DatasetManifest read_manifest(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kManifestFileName;
  const Json json = parse(folder, path);
  const FieldReader root(json, path, "");
  if (root.text("format") != kFormat) root.refuse("format", kFormat);
  const int64_t version = root.integer("version", kOldestVersion, kVersion);
  DatasetManifest manifest;
  manifest.tokenizer = root.text("tokenizer");
  manifest.token_bytes = static_cast<uint32_t>(root.integer("token_bytes", 1, 4));
  manifest.vocab_size =
      static_cast<uint32_t>(root.integer("vocab_size", 1, std::numeric_limits<int32_t>::max()));
  if (version > kOldestVersion) read_tokenizer(root, path, manifest);
  manifest.validation_fraction = root.fraction("validation_fraction");
  manifest.validation_block_tokens =
      root.integer("validation_block_tokens", 0, std::numeric_limits<int64_t>::max());
  manifest.train = read_shards(root, path, Split::kTrain);
  manifest.validation = read_shards(root, path, Split::kValidation);
  manifest.sources = read_sources(root, path);
  if (root.text("fingerprint") != manifest.fingerprint()) {
    root.refuse("fingerprint", "that of the other fields");
  }
  return manifest;
}

void write_manifest(const std::filesystem::path& folder, const DatasetManifest& manifest) {
  const std::filesystem::path path = folder / kManifestFileName;
  const std::filesystem::path temporary = path.string() + ".tmp";
  // A file name may hold bytes that are not UTF-8: they are replaced in the record, not refused.
  const std::string text =
      to_json(manifest).dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  OutputFile file(temporary);
  file.append(std::as_bytes(std::span(text)));
  file.commit();
  rename_file(temporary, path);
  sync_folder(folder);
}

}  // namespace flashshard::data
