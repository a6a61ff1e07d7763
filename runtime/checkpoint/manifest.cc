#include "runtime/checkpoint/manifest.h"

#include <fmt/format.h>
#include <google/protobuf/stubs/logging.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "proto/checkpoint.pb.h"
#include "runtime/checkpoint/manifest_schema.h"
#include "runtime/checkpoint/zstd_file.h"

namespace flashshard::checkpoint {
namespace {

constexpr std::string_view kMagic = "FSHMANI1";
constexpr uint32_t kFormatVersion = 1;
constexpr uint32_t kFormatVersionOfZstd = 2;  // of a checkpoint with files under zstd
constexpr size_t kLengthBytes = 8;
constexpr size_t kHashBytes = 16;

[[noreturn]] void fail(const std::string& where, std::string_view what) {
  throw Error(ExitCode::kCheckpoint, fmt::format("bad manifest: {}", what), where);
}

/// Canonical bytes of a hash: most significant first.
std::string canonical(Hash128 hash) {
  std::string bytes;
  for (const uint64_t half : {hash.high, hash.low}) {
    for (int shift = 56; shift >= 0; shift -= 8) bytes += static_cast<char>(half >> shift & 0xff);
  }
  return bytes;
}

std::string frame(const std::string& payload) {
  std::string framed(kMagic);
  for (size_t i = 0; i < kLengthBytes; ++i) {
    framed += static_cast<char>(uint64_t{payload.size()} >> (8 * i) & 0xff);
  }
  return framed + payload + canonical(xxh3_128(bytes_of(payload)));
}

/// The payload of a frame, or what is wrong with it.
struct Unframed {
  std::string_view payload;
  std::string problem;
};

Unframed unframe(std::string_view framed) {
  if (!framed.starts_with(kMagic)) return {{}, "it does not begin with FSHMANI1"};
  if (framed.size() < kMagic.size() + kLengthBytes + kHashBytes) return {{}, "it is cut short"};
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length |= uint64_t{static_cast<uint8_t>(framed[kMagic.size() + i])} << (8 * i);
  }
  const uint64_t present = framed.size() - kMagic.size() - kLengthBytes - kHashBytes;
  if (length != present) {
    return {{}, fmt::format("its length says {} bytes, the file has {}", length, present)};
  }
  const std::string_view payload = framed.substr(kMagic.size() + kLengthBytes, length);
  if (framed.substr(framed.size() - kHashBytes) != canonical(xxh3_128(bytes_of(payload)))) {
    return {{}, "its own hash does not hold"};
  }
  return {payload, {}};
}

proto::Manifest parse(std::string_view framed, const std::string& where) {
  const Unframed unframed = unframe(framed);
  if (!unframed.problem.empty()) fail(where, unframed.problem);
  const google::protobuf::LogSilencer quiet;  // the Error says it, in one line
  proto::Manifest message;
  if (unframed.payload.size() > static_cast<size_t>(std::numeric_limits<int>::max()) ||
      !message.ParseFromArray(unframed.payload.data(), static_cast<int>(unframed.payload.size()))) {
    fail(where, "its payload is no manifest message");
  }
  return message;
}

void write_run(const RunState& run, proto::Manifest& message) {
  message.set_step(run.step);
  message.set_applied_updates(run.applied_updates);
  message.set_sequences_consumed(run.sequences_consumed);
  message.set_tokens_consumed(run.tokens_consumed);
  message.set_model(run.model);
  message.set_config(run.config);
  for (const auto& [name, value] : run.environment) {
    auto* entry = message.add_environment();
    entry->set_name(name);
    entry->set_value(value);
  }
  for (const auto& [name, key] : run.rng_keys) {
    auto* entry = message.add_rng_keys();
    entry->set_name(name);
    entry->set_key(key);
  }
  for (const auto& [name, value] : run.counters) {
    auto* entry = message.add_counters();
    entry->set_name(name);
    entry->set_value(value);
  }
}

RunState read_run(const proto::Manifest& message, const std::string& where) {
  if (message.step() < 0 || message.sequences_consumed() < 0 || message.tokens_consumed() < 0) {
    fail(where, "step, sequences_consumed and tokens_consumed cannot be negative");
  }
  RunState run;
  run.step = message.step();
  run.applied_updates = message.applied_updates();
  run.sequences_consumed = message.sequences_consumed();
  run.tokens_consumed = message.tokens_consumed();
  run.model = message.model();
  run.config = message.config();
  for (const auto& entry : message.environment()) run.environment[entry.name()] = entry.value();
  for (const auto& entry : message.rng_keys()) run.rng_keys[entry.name()] = entry.key();
  for (const auto& entry : message.counters()) run.counters[entry.name()] = entry.value();
  return run;
}

void write_file_record(const FileRecord& record, proto::Manifest::File& message) {
  message.set_name(record.name);
  message.set_rank(record.rank);
  message.set_bytes(record.bytes);
  message.set_xxh3_128(record.hash.hex());
  if (record.zstd) {
    message.set_zstd_bytes(record.zstd->bytes);
    message.set_zstd_xxh3_128(record.zstd->hash.hex());
  }
  for (const TensorHash& tensor : record.tensors) {
    auto* entry = message.add_tensors();
    entry->set_name(tensor.name);
    entry->set_bytes(tensor.bytes);
    entry->set_xxh3_128(tensor.hash.hex());
  }
}

Hash128 read_hash(const std::string& text, std::string_view of, const std::string& where) {
  const auto hash = Hash128::from_hex(text);
  if (!hash) fail(where, fmt::format("{}: {} is no hash", of, in_quotes(text)));
  return *hash;
}

FileRecord read_file_record(const proto::Manifest::File& message, const std::string& where) {
  FileRecord record;
  record.name = message.name();
  record.rank = message.rank();
  record.bytes = message.bytes();
  record.hash = read_hash(message.xxh3_128(), in_quotes(message.name()), where);
  if (message.has_zstd_bytes()) {
    record.zstd = {message.zstd_bytes(),
                   read_hash(message.zstd_xxh3_128(), in_quotes(message.name()), where)};
  }
  for (const auto& tensor : message.tensors()) {
    record.tensors.push_back({tensor.name(), tensor.bytes(),
                              read_hash(tensor.xxh3_128(), in_quotes(tensor.name()), where)});
  }
  return record;
}

/// Every rank has its two files, under the names that the ranks give; nothing here can lead out of
/// the folder.
void check_file_records(const std::vector<FileRecord>& files, int world_size,
                        const std::string& where) {
  if (files.size() != 2 * static_cast<size_t>(world_size)) {
    fail(where, fmt::format("{} files for {} ranks, wants two each", files.size(), world_size));
  }
  constexpr uint64_t kMostBytes = uint64_t{1} << 62;  // what adds up sizes cannot overflow
  uint64_t total = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    const int rank = static_cast<int>(i / 2);
    if (__builtin_add_overflow(total, files[i].bytes_on_disk(), &total) || total > kMostBytes) {
      fail(where, "its files are too large");
    }
    std::string name = file_name(i % 2 == 0 ? FileKind::kWeights : FileKind::kState, rank);
    if (files[i].zstd) name += kZstdSuffix;
    if (files[i].name != name || files[i].rank != rank) {
      fail(where, fmt::format("file {} of rank {} where {} of rank {} belongs",
                              in_quotes(files[i].name), files[i].rank, name, rank));
    }
  }
}

void write_logical_hash(const LogicalHash& hash, proto::Manifest& message) {
  for (size_t c = 0; c < kStateClasses; ++c) {
    auto* entry = message.add_logical_hashes();
    entry->set_name(std::string(name_of(static_cast<StateClass>(c))));
    entry->set_hash(hash.by_class[c].hex());
  }
  message.set_logical_hash(hash.total().hex());
}

LogicalHash read_logical_hash(const proto::Manifest& message, const std::string& where) {
  LogicalHash hash;
  if (message.logical_hashes_size() != static_cast<int>(kStateClasses)) {
    fail(where, "logical_hashes: wants one for each class");
  }
  for (size_t c = 0; c < kStateClasses; ++c) {
    const auto& entry = message.logical_hashes(static_cast<int>(c));
    if (entry.name() != name_of(static_cast<StateClass>(c))) {
      fail(where, fmt::format("logical_hashes: {} is out of place", in_quotes(entry.name())));
    }
    hash.by_class[c] = read_hash(entry.hash(), entry.name(), where);
  }
  if (message.logical_hash() != hash.total().hex()) {
    fail(where, "logical_hash is not the sum of those of the classes");
  }
  return hash;
}

/// Releases that know nothing of zstd say so, rather than that a file is missing.
uint32_t format_version_of(std::span<const FileRecord> files) {
  const bool any =
      std::ranges::any_of(files, [](const auto& file) { return file.zstd.has_value(); });
  return any ? kFormatVersionOfZstd : kFormatVersion;
}

std::string to_json(const proto::Manifest& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  if (!status.ok()) {
    throw Error(ExitCode::kInternal, "the manifest has no JSON form: " + status.ToString());
  }
  return json;
}

}  // namespace

ManifestFiles encode_manifest(const Manifest& manifest) {
  proto::Manifest message;
  message.set_format_version(format_version_of(manifest.files));
  write_run(manifest.run, message);
  write_schema(manifest.schema, message);
  for (const FileRecord& record : manifest.files) write_file_record(record, *message.add_files());
  write_logical_hash(manifest.logical_hash, message);

  ManifestFiles files;
  files.json = to_json(message);
  message.set_json_xxh3_128(xxh3_128(bytes_of(files.json)).hex());
  files.pb = frame(message.SerializeAsString());
  try {
    decode_manifest(files.pb, "the manifest about to be written");
  } catch (const Error& error) {
    throw Error(ExitCode::kInternal, error.what());
  }
  return files;
}

bool manifest_frame_holds(std::string_view pb) { return unframe(pb).problem.empty(); }

Manifest decode_manifest(std::string_view pb, const std::string& where) {
  const proto::Manifest message = parse(pb, where);
  if (message.format_version() != kFormatVersion &&
      message.format_version() != kFormatVersionOfZstd) {
    throw Error(
        ExitCode::kCheckpoint,
        fmt::format("format version {} of the checkpoint is unknown, this program knows {} and {}",
                    message.format_version(), kFormatVersion, kFormatVersionOfZstd),
        where, "open it with the release that saved it, or a newer one");
  }
  Manifest manifest{read_run(message, where), read_schema(message, where), {}, {}};
  for (const auto& file : message.files()) manifest.files.push_back(read_file_record(file, where));
  check_file_records(manifest.files, manifest.schema.layout.world_size(), where);
  if (message.format_version() != format_version_of(manifest.files)) {
    fail(where,
         fmt::format("format_version {} is not that of its files", message.format_version()));
  }
  manifest.logical_hash = read_logical_hash(message, where);
  return manifest;
}

std::optional<std::string> json_difference(std::string_view pb, std::string_view json) {
  proto::Manifest message = parse(pb, std::string(kManifestFile));
  if (xxh3_128(bytes_of(json)).hex() != message.json_xxh3_128()) {
    return "it is not the file that was written with manifest.pb";
  }
  message.clear_json_xxh3_128();
  if (to_json(message) == json) return std::nullopt;
  // Another protobuf release may set other white space: then the contents decide.
  proto::Manifest other;
  const auto status = google::protobuf::util::JsonStringToMessage(
      google::protobuf::StringPiece(json.data(), json.size()), &other);
  if (status.ok() && google::protobuf::util::MessageDifferencer::Equals(message, other)) {
    return std::nullopt;
  }
  return "its content is not that of manifest.pb";
}

std::string encode_files(std::span<const FileRecord> files) {
  proto::Manifest message;
  for (const FileRecord& record : files) write_file_record(record, *message.add_files());
  return message.SerializeAsString();
}

std::vector<FileRecord> decode_files(std::string_view bytes) {
  proto::Manifest message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    throw Error(ExitCode::kInternal, "a rank's list of files cannot be read");
  }
  std::vector<FileRecord> files;
  for (const auto& file : message.files()) {
    files.push_back(read_file_record(file, "a rank's list of files"));
  }
  return files;
}

}  // namespace flashshard::checkpoint
