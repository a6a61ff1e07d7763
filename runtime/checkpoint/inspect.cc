#include "runtime/checkpoint/inspect.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/reader.h"
#include "runtime/checkpoint/verify.h"

namespace flashshard::checkpoint {
namespace {

void add_tensor(const Schema& schema, int tensor, Inspection& inspection) {
  const ParameterSpec& parameter = schema.layout.parameter(tensor);
  inspection.parameters += parameter.elements();
  for (const StateRecord& state : schema.states[static_cast<size_t>(tensor)]) {
    const int64_t bytes = bytes_of_rows(schema.layout, tensor, state, parameter.rows);
    inspection.bytes_by_class[static_cast<size_t>(class_of_state(state.name))] += bytes;
    inspection.tensor_bytes += bytes;
  }
}

std::string class_table(const Inspection& inspection) {
  std::string text;
  for (size_t c = 0; c < kStateClasses; ++c) {
    const int64_t bytes = inspection.bytes_by_class[c];
    if (bytes == 0) continue;
    text += fmt::format("  {:<12} {:>16} bytes {:>9.4f} a parameter   {}\n",
                        name_of(static_cast<StateClass>(c)), bytes,
                        static_cast<double>(bytes) / static_cast<double>(inspection.parameters),
                        inspection.hash.by_class[c].hex());
  }
  return text + fmt::format("  {:<12} {:>16} bytes {:>9.4f} a parameter   {}\n", "total",
                            inspection.tensor_bytes, inspection.bytes_per_parameter(),
                            inspection.hash.total().hex());
}

}  // namespace

Inspection inspect(const std::string& argument, FileSystem& file_system) {
  const CheckpointReader reader(resolve(argument, file_system), file_system);
  const Manifest& manifest = reader.manifest();
  Inspection inspection;
  inspection.path = reader.folder();
  inspection.run = manifest.run;
  inspection.world_size = manifest.schema.layout.world_size();
  inspection.tensors = manifest.schema.layout.tensors();
  inspection.hash = manifest.logical_hash;
  for (int t = 0; t < manifest.schema.layout.tensors(); ++t) {
    add_tensor(manifest.schema, t, inspection);
  }
  for (const FileRecord& record : manifest.files) {
    inspection.file_bytes += static_cast<int64_t>(record.bytes_on_disk());
    inspection.under_zstd = inspection.under_zstd || record.zstd.has_value();
  }
  for (const std::string_view name : {kManifestFile, kManifestJsonFile}) {
    const std::string path = join(inspection.path, name);
    if (kind_of(file_system, path) == PathKind::kFile) {
      inspection.file_bytes += static_cast<int64_t>(InputFile(file_system, path).size());
    }
  }
  return inspection;
}

std::string to_text(const Inspection& inspection) {
  const RunState& run = inspection.run;
  std::string text = fmt::format("checkpoint     {}\n", inspection.path);
  text += fmt::format("model          {}, {} parameters in {} tensors\n",
                      run.model.empty() ? "unnamed" : run.model, inspection.parameters,
                      inspection.tensors);
  text += fmt::format("step           {} ({} updates applied)\n", run.step, run.applied_updates);
  text += fmt::format("data           {} sequences, {} tokens\n", run.sequences_consumed,
                      run.tokens_consumed);
  text += fmt::format("saved by       {} rank{}\n", inspection.world_size,
                      inspection.world_size == 1 ? "" : "s");
  for (const auto& [name, value] : run.counters) {
    if (name.ends_with("_bits")) continue;  // bits of a number, for machines
    text += fmt::format("{:<14} {}\n", name, value);
  }
  text += class_table(inspection);
  text += fmt::format("  {:<12} {:>16} bytes{}\n", "on disk", inspection.file_bytes,
                      inspection.under_zstd ? ", under zstd" : "");
  return text + fmt::format(
                    "{:.2f} times smaller than fp32 weights with Adam's moments (12 bytes a "
                    "parameter)\n",
                    inspection.compression());
}

std::string to_json(const Inspection& inspection) {
  nlohmann::ordered_json json;
  json["checkpoint"] = inspection.path;
  json["step"] = inspection.run.step;
  json["applied_updates"] = inspection.run.applied_updates;
  json["sequences_consumed"] = inspection.run.sequences_consumed;
  json["tokens_consumed"] = inspection.run.tokens_consumed;
  json["model"] = inspection.run.model;
  json["world_size"] = inspection.world_size;
  json["tensors"] = inspection.tensors;
  json["parameters"] = inspection.parameters;
  for (size_t c = 0; c < kStateClasses; ++c) {
    json["bytes"][std::string(name_of(static_cast<StateClass>(c)))] = inspection.bytes_by_class[c];
  }
  json["tensor_bytes"] = inspection.tensor_bytes;
  json["file_bytes"] = inspection.file_bytes;
  json["under_zstd"] = inspection.under_zstd;
  json["bytes_per_parameter"] = inspection.bytes_per_parameter();
  json["compression_against_fp32"] = inspection.compression();
  json["counters"] = inspection.run.counters;
  json["rng_keys"] = inspection.run.rng_keys;
  json["environment"] = inspection.run.environment;
  json["hash"] = nlohmann::ordered_json::parse(to_json(inspection.hash));
  json["config"] = inspection.run.config;
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace flashshard::checkpoint
