#include "runtime/checkpoint/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "kernels/numerics/formats.h"
#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/shard_file.h"

namespace flashshard::checkpoint {
namespace {

/// Scales of either format (docs/numerics.md), told apart by their type: V2's codes, or V1's fp16
/// values, which are finite and not negative.
bool is_valid_scale(DType dtype, uint16_t code) {
  return dtype == DType::kFP16 ? code < 0x7c00 : numerics::is_valid_scale_code(code);
}

bool all_scales_valid(DType dtype, std::span<const std::byte> bytes) {
  for (; bytes.size() >= sizeof(uint16_t); bytes = bytes.subspan(sizeof(uint16_t))) {
    uint16_t code = 0;
    std::memcpy(&code, bytes.data(), sizeof(code));
    if (!is_valid_scale(dtype, code)) return false;
  }
  return true;
}

/// Reads one rank's file from its first to its last byte.
class FileCheck {
 public:
  FileCheck(const Manifest& manifest, FileKind kind, int rank, Verification& verification,
            LogicalHasher& hasher)
      : manifest_(manifest),
        plan_(plan_file(manifest.schema, kind, rank)),
        record_(manifest.file(kind, rank)),
        verification_(verification),
        hasher_(hasher) {}

  void run(FileSystem& file_system, const std::string& folder) {
    const size_t before = verification_.findings.size();
    try {
      const auto file = open_shard_file(file_system, folder, record_);
      check_record(record_, plan_, file->path());
      const uint64_t data_offset = check_header(*file);
      hash_header(*file, data_offset);
      for (size_t i = 0; i < plan_.entries.size(); ++i) check_tensor(*file, data_offset, i);
      // A damaged tensor or header has been named already.
      if (verification_.findings.size() > before) return;
      if (file_hash_.digest() != record_.hash) {
        find("", "its hash is not the manifest's: the header was changed");
      } else if (record_.zstd) {
        check_bytes_on_disk(file_system, file->path());
      }
    } catch (const Error& error) {
      find("", error.what());
    }
  }

 private:
  void find(std::string_view tensor, std::string_view what) {
    verification_.findings.push_back({record_.name, std::string(tensor), std::string(what)});
  }

  /// Where the data begins, by the header or, if that is damaged, by what was written.
  uint64_t check_header(const ByteSource& file) {
    try {
      return check_shard_header(file, plan_);
    } catch (const Error& error) {
      find("", error.what());
      return plan_.header.data_offset;
    }
  }

  void hash_header(const ByteSource& file, uint64_t bytes) {
    std::vector<std::byte> header(bytes);
    file.read(0, header);
    file_hash_.add(header);
  }

  /// A bit of a compressed file may change without a change of what it decodes to.
  void check_bytes_on_disk(FileSystem& file_system, const std::string& path) {
    const InputFile file(file_system, path);
    Xxh3 hash;
    for (uint64_t at = 0; at < file.size(); at += buffer_.size()) {
      buffer_.resize(std::min<uint64_t>(uint64_t{1} << 20, file.size() - at));
      file.read(at, buffer_);
      hash.add(buffer_);
    }
    if (hash.digest() == record_.zstd->hash) return;
    find("", "its hash is not the manifest's, though it decodes to what was saved");
  }

  void check_tensor(const ByteSource& file, uint64_t data_offset, size_t index) {
    try {
      read_tensor(file, data_offset, index);
    } catch (const Error& error) {
      find(plan_.header.entries[index].name, error.what());
    }
  }

  void read_tensor(const ByteSource& file, uint64_t data_offset, size_t index) {
    const ShardEntry& entry = plan_.entries[index];
    const SafetensorsEntry& tensor = plan_.header.entries[index];
    const ShardLayout& layout = manifest_.schema.layout;
    const StateRecord& state = manifest_.schema.state(entry.tensor, entry.state);
    const int64_t bytes_of_a_unit = unit_bytes(layout, entry.tensor, state);
    const bool is_scale =
        class_of_state(state.name) == StateClass::kScales && size_of(state.dtype) == 2;
    bool scales_valid = true;
    tensor_hash_.reset();
    int64_t unit = entry.rows.first / layout.unit_rows(entry.tensor);
    for (uint64_t at = tensor.begin; at < tensor.end;) {
      buffer_.resize(std::min<uint64_t>(chunk_bytes(bytes_of_a_unit), tensor.end - at));
      file.read(data_offset + at, buffer_);
      file_hash_.add(buffer_);
      tensor_hash_.add(buffer_);
      hasher_.add(
          {layout.parameter(entry.tensor).name, state.name, unit, bytes_of_a_unit, buffer_});
      if (is_scale) scales_valid = scales_valid && all_scales_valid(state.dtype, buffer_);
      at += buffer_.size();
      unit += static_cast<int64_t>(chunk_bytes(bytes_of_a_unit)) / bytes_of_a_unit;
    }
    if (tensor_hash_.digest() != record_.tensors[index].hash) {
      find(tensor.name, "its bytes are not those that were saved");
    } else if (!scales_valid) {
      find(tensor.name, "a scale is no valid code: its group was not finite");
    }
  }

  const Manifest& manifest_;
  ShardFilePlan plan_;
  const FileRecord& record_;
  Verification& verification_;
  LogicalHasher& hasher_;
  Xxh3 file_hash_;
  Xxh3 tensor_hash_;
  std::vector<std::byte> buffer_;
};

void check_data(const Manifest& manifest, FileSystem& file_system, Verification& verification) {
  LogicalHasher hasher;
  for (int rank = 0; rank < manifest.schema.layout.world_size(); ++rank) {
    for (const FileKind kind : {FileKind::kWeights, FileKind::kState}) {
      FileCheck(manifest, kind, rank, verification, hasher).run(file_system, verification.path);
    }
  }
  verification.hash = hasher.sum();
  if (!verification.findings.empty()) return;
  for (size_t c = 0; c < kStateClasses; ++c) {
    if (verification.hash.by_class[c] == manifest.logical_hash.by_class[c]) continue;
    verification.findings.push_back(
        {std::string(kManifestFile), "",
         fmt::format("the logical hash of {} is {}, the files have {}",
                     name_of(static_cast<StateClass>(c)), manifest.logical_hash.by_class[c].hex(),
                     verification.hash.by_class[c].hex())});
  }
}

/// The shard rule of the manifest's own table covers every unit of every tensor once.
void check_cover(const Schema& schema, Verification& verification) {
  for (int t = 0; t < schema.layout.tensors(); ++t) {
    int64_t next = 0;
    for (int rank = 0; rank < schema.layout.world_size(); ++rank) {
      const RowRange rows = schema.layout.rows_of(t, rank);
      if (rows.count > 0 && rows.first != next) break;
      next += rows.count;
    }
    if (next == schema.layout.parameter(t).rows) continue;
    verification.findings.push_back({std::string(kManifestFile), schema.layout.parameter(t).name,
                                     "the ranks' rows do not cover it once"});
  }
}

void check_json(const std::string& pb, FileSystem& file_system, Verification& verification) {
  const auto find = [&](std::string what) {
    verification.findings.push_back({std::string(kManifestJsonFile), "", std::move(what)});
  };
  try {
    const auto json =
        read_file(file_system, join(verification.path, kManifestJsonFile), kLargestManifest);
    if (auto difference = json_difference(pb, json)) find(std::move(*difference));
  } catch (const Error& error) {
    find(error.what());
  }
}

void check_folder(const Manifest& manifest, FileSystem& file_system, Verification& verification) {
  const auto step = step_of_name(name_of_path(verification.path));
  if (step && *step != manifest.run.step) {
    verification.findings.push_back(
        {std::string(kManifestFile), "",
         fmt::format("it is of step {}, the folder's name says {}", manifest.run.step, *step)});
  }
  std::set<std::string> known = {std::string(kManifestFile), std::string(kManifestJsonFile)};
  for (const FileRecord& record : manifest.files) known.insert(record.name);
  for (const std::string& name : list(file_system, verification.path)) {
    if (!known.contains(name)) {
      verification.findings.push_back({name, "", "it is no part of this checkpoint"});
    }
  }
}

/// The manifest, or a finding that says why there is none.
std::optional<Manifest> check_manifest(FileSystem& file_system, Verification& verification,
                                       std::string& pb) {
  const std::string path = join(verification.path, kManifestFile);
  try {
    pb = read_file(file_system, path, kLargestManifest);
    return decode_manifest(pb, path);
  } catch (const Error& error) {
    verification.findings.push_back({std::string(kManifestFile), "", error.what()});
    return std::nullopt;
  }
}

nlohmann::ordered_json json_of(const LogicalHash& hash) {
  nlohmann::ordered_json json;
  for (size_t c = 0; c < kStateClasses; ++c) {
    json[std::string(name_of(static_cast<StateClass>(c)))] = hash.by_class[c].hex();
  }
  json["total"] = hash.total().hex();
  return json;
}

}  // namespace

std::string to_text(const Finding& finding) {
  return fmt::format(
      "{}{}: {}", finding.file,
      finding.tensor.empty() ? "" : fmt::format(", tensor {}", in_quotes(finding.tensor)),
      finding.what);
}

std::string to_json(const Verification& verification) {
  nlohmann::ordered_json json;
  json["checkpoint"] = verification.path;
  json["whole"] = verification.findings.empty();
  json["findings"] = nlohmann::ordered_json::array();
  for (const Finding& finding : verification.findings) {
    json["findings"].push_back(
        {{"file", finding.file}, {"tensor", finding.tensor}, {"what", finding.what}});
  }
  json["hash"] = json_of(verification.hash);
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string to_json(const LogicalHash& hash) { return json_of(hash).dump(2); }

Verification verify_folder(const std::string& step_folder, FileSystem& file_system) {
  Verification verification;
  verification.path = step_folder;
  std::string pb;
  const auto manifest = check_manifest(file_system, verification, pb);
  if (!manifest) return verification;
  check_json(pb, file_system, verification);
  check_folder(*manifest, file_system, verification);
  check_cover(manifest->schema, verification);
  Verification data;
  data.path = step_folder;
  check_data(*manifest, file_system, data);
  std::ranges::move(data.findings, std::back_inserter(verification.findings));
  verification.hash = data.hash;
  return verification;
}

Verification verify(const std::string& argument, FileSystem& file_system) {
  return verify_folder(resolve(argument, file_system), file_system);
}

LogicalHash hash(const std::string& argument, FileSystem& file_system) {
  Verification verification;
  verification.path = resolve(argument, file_system);
  std::string pb;
  const auto manifest = check_manifest(file_system, verification, pb);
  if (manifest) check_data(*manifest, file_system, verification);
  if (!verification.findings.empty()) {
    throw Error(ExitCode::kCheckpoint, to_text(verification.findings.front()), verification.path,
                "`flashshard verify` lists all damage");
  }
  return verification.hash;
}

}  // namespace flashshard::checkpoint
