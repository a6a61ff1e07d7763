// The manifest of a checkpoint (docs/checkpoints.md): everything but the tensors' bytes, and the
// hashes that guard those.
//
// manifest.pb:  8 bytes "FSHMANI1", payload length (8 bytes little-endian), payload
// (proto/checkpoint.proto),
//               XXH3-128 of the payload (16 bytes, most significant first)
// manifest.json: the same message as protobuf JSON, for people and scripts. Our code reads
// manifest.pb alone.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/checkpoint/hash.h"
#include "runtime/checkpoint/schema.h"

namespace flashshard::checkpoint {

/// Where a run stands, apart from its tensors.
struct RunState {
  int64_t step = 0;                // steps done, skipped ones included
  uint64_t applied_updates = 0;    // t: updates that changed the weights
  int64_t sequences_consumed = 0;  // where the data goes on
  int64_t tokens_consumed = 0;
  std::string model;                               // the model's name, for people
  std::string config;                              // the resolved configuration as text
  std::map<std::string, std::string> environment;  // what the bits depend on besides the inputs
  std::map<std::string, uint64_t> rng_keys;        // "seed", ...
  std::map<std::string, int64_t> counters;         // "skipped_steps", ...

  friend bool operator==(const RunState&, const RunState&) = default;
};

struct TensorHash {
  std::string name;  // as in the file
  uint64_t bytes = 0;
  Hash128 hash;
};

struct FileRecord {
  std::string name;
  int rank = 0;
  uint64_t bytes = 0;               // of the safetensors file
  Hash128 hash;                     // of the safetensors file
  std::vector<TensorHash> tensors;  // in the order of their bytes

  /// The file on disk, where it is the safetensors file under zstd.
  struct Compressed {
    uint64_t bytes = 0;
    Hash128 hash;
  };
  std::optional<Compressed> zstd = {};

  uint64_t bytes_on_disk() const { return zstd ? zstd->bytes : bytes; }
};

struct Manifest {
  RunState run;
  Schema schema;                  // its layout's world size is that of the ranks that saved
  std::vector<FileRecord> files;  // weights and state of rank 0, of rank 1, ...
  LogicalHash logical_hash;

  const FileRecord& file(FileKind kind, int rank) const {
    return files[2 * static_cast<size_t>(rank) + (kind == FileKind::kState ? 1 : 0)];
  }
};

constexpr std::string_view kManifestFile = "manifest.pb";
constexpr std::string_view kManifestJsonFile = "manifest.json";
constexpr uint64_t kLargestManifest = uint64_t{1} << 31;

/// The two files' contents. Throws Error(kInternal) when the manifest could not be read back.
struct ManifestFiles {
  std::string pb;
  std::string json;
};
ManifestFiles encode_manifest(const Manifest& manifest);

/// True when the frame is whole and its hash holds: what makes a step folder complete.
bool manifest_frame_holds(std::string_view pb);

/// Throws Error(kCheckpoint) that says what is wrong; every number is checked before it is used.
Manifest decode_manifest(std::string_view pb, const std::string& where);

/// What differs between a decodable manifest.pb and the manifest.json beside it; nothing when they
/// agree.
std::optional<std::string> json_difference(std::string_view pb, std::string_view json);

/// Records of files as bytes, for the way between ranks.
std::string encode_files(std::span<const FileRecord> files);
std::vector<FileRecord> decode_files(std::string_view bytes);

}  // namespace flashshard::checkpoint
