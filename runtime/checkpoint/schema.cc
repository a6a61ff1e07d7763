#include "runtime/checkpoint/schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace flashshard::checkpoint {
namespace {

std::string entry_name(const ParameterSpec& parameter, const StateRecord& state) {
  if (state.name == kWeightState) return parameter.name;
  return fmt::format("{}.{}", parameter.name, state.name);
}

/// The shape of some rows of a state: (rows, columns) where a row has whole groups, else all
/// elements in a row.
std::vector<int64_t> shape_of(const ParameterSpec& parameter, const StateRecord& state,
                              int64_t rows) {
  if (parameter.role != ParameterRole::kVector && parameter.cols % state.group == 0) {
    return {rows, parameter.cols / state.group};
  }
  return {(rows * parameter.cols + state.group - 1) / state.group};
}

/// What any reader of the file can learn about its shards: rows of the whole tensor, and how it is
/// stored.
std::string describe_shards(const Schema& schema, std::span<const ShardEntry> entries) {
  nlohmann::json shards = nlohmann::json::object();
  for (const ShardEntry& entry : entries) {
    const ParameterSpec& parameter = schema.layout.parameter(entry.tensor);
    shards[parameter.name] = {{"rows", {entry.rows.first, entry.rows.count}},
                              {"of", {parameter.rows, parameter.cols}},
                              {"unit_rows", schema.layout.unit_rows(entry.tensor)},
                              {"orientation", "as_named"}};
  }
  return shards.dump();
}

std::vector<ShardEntry> entries_of(const Schema& schema, FileKind kind, int rank) {
  std::vector<ShardEntry> entries;
  for (int t = 0; t < schema.layout.tensors(); ++t) {
    const RowRange rows = schema.layout.rows_of(t, rank);
    if (rows.count == 0) continue;
    const size_t states = schema.states[static_cast<size_t>(t)].size();
    const size_t first = kind == FileKind::kWeights ? 0 : 1;
    const size_t last = kind == FileKind::kWeights ? 1 : states;
    for (size_t s = first; s < last; ++s) entries.push_back({t, s, rows});
  }
  std::ranges::stable_sort(entries, std::ranges::greater(), [&](const ShardEntry& entry) {
    return size_of(schema.state(entry.tensor, entry.state).dtype);
  });
  return entries;
}

[[noreturn]] void mismatch(const std::string& where, const std::string& tensor,
                           std::string_view field, std::string_view saved,
                           std::string_view running) {
  throw Error(
      ExitCode::kCheckpoint,
      fmt::format("the checkpoint does not fit this run: tensor {}: {} is {}, the run has {}",
                  in_quotes(tensor), field, saved, running),
      where, "resume with the model and optimizer settings that it was saved with");
}

template <class T>
void require_equal(const std::string& where, const std::string& tensor, std::string_view field,
                   const T& saved, const T& running) {
  if (saved != running) {
    mismatch(where, tensor, field, fmt::format("{}", saved), fmt::format("{}", running));
  }
}

std::string_view text_of(ParameterRole role) {
  switch (role) {
    case ParameterRole::kMatrix:
      return "a matrix";
    case ParameterRole::kVector:
      return "a vector";
    case ParameterRole::kEmbedding:
      return "an embedding";
  }
  return "unknown";
}

std::string text_of(const std::vector<ParameterPart>& parts) {
  std::string text;
  for (const ParameterPart& part : parts) {
    text += fmt::format("[{} {} {}]", in_quotes(part.name), part.first_row, part.rows);
  }
  return text.empty() ? "none" : text;
}

std::string text_of(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += in_quotes(name);
  return text.empty() ? "none" : text;
}

std::string text_of(const std::vector<StateRecord>& states) {
  std::string text;
  for (const StateRecord& state : states) {
    text += fmt::format("{}{} {}/{}", text.empty() ? "" : ", ", state.name,
                        safetensors_dtype(state.dtype), state.group);
  }
  return text;
}

void require_same_shape(const ParameterSpec& saved, const ParameterSpec& running,
                        const std::string& where) {
  require_equal(where, running.name, "its name", in_quotes(saved.name), in_quotes(running.name));
  require_equal(where, running.name, "rows", saved.rows, running.rows);
  require_equal(where, running.name, "cols", saved.cols, running.cols);
}

void require_same_count(int64_t saved, int64_t running, const std::string& where) {
  if (saved == running) return;
  throw Error(ExitCode::kCheckpoint,
              fmt::format("the checkpoint does not fit this run: it has {} tensors, the run has {}",
                          saved, running),
              where, "resume with the model that it was saved with");
}

}  // namespace

Schema schema_of(const ShardLayout& layout, std::span<const ShardTensorView> views) {
  Schema schema{layout,
                std::vector<std::vector<StateRecord>>(static_cast<size_t>(layout.tensors()))};
  for (const ShardTensorView& view : views) {
    const auto t = static_cast<size_t>(view.tensor);
    const std::string where = fmt::format("view {} of tensor {}", view.state, view.tensor);
    if (view.tensor < 0 || t >= schema.states.size() || view.group <= 0 ||
        schema.states[t].empty() != (view.state == kWeightState)) {
      throw Error(ExitCode::kInternal, "shard views: every tensor has its weight first", where);
    }
    StateRecord record{view.state, view.dtype, view.group};
    if (view.bytes.size() !=
        static_cast<size_t>(bytes_of_rows(layout, view.tensor, record, view.rows.count))) {
      throw Error(ExitCode::kInternal, "shard views: bytes and rows differ", where);
    }
    schema.states[t].push_back(std::move(record));
  }
  for (const auto& states : schema.states) {
    if (states.empty()) throw Error(ExitCode::kInternal, "shard views: a tensor is missing");
  }
  return schema;
}

int64_t bytes_of_rows(const ShardLayout& layout, int tensor, const StateRecord& state,
                      int64_t rows) {
  const int64_t elements = rows * layout.parameter(tensor).cols;
  return (elements + state.group - 1) / state.group * static_cast<int64_t>(size_of(state.dtype));
}

int64_t unit_bytes(const ShardLayout& layout, int tensor, const StateRecord& state) {
  return bytes_of_rows(layout, tensor, state, layout.unit_rows(tensor));
}

std::string file_name(FileKind kind, int rank) {
  return fmt::format("{}-{:05}.safetensors", kind == FileKind::kWeights ? "weights" : "state",
                     rank);
}

ShardFilePlan plan_file(const Schema& schema, FileKind kind, int rank) {
  ShardFilePlan plan{file_name(kind, rank), entries_of(schema, kind, rank), {}, {}};
  for (const ShardEntry& entry : plan.entries) {
    const ParameterSpec& parameter = schema.layout.parameter(entry.tensor);
    const StateRecord& state = schema.state(entry.tensor, entry.state);
    SafetensorsEntry tensor;
    tensor.name = entry_name(parameter, state);
    tensor.dtype = safetensors_dtype(state.dtype);
    tensor.shape = shape_of(parameter, state, entry.rows.count);
    plan.header.entries.push_back(std::move(tensor));
  }
  plan.header.metadata = {{"format", "pt"},
                          {"flashshard", "1"},
                          {"rank", fmt::format("{}", rank)},
                          {"world_size", fmt::format("{}", schema.layout.world_size())},
                          {"shards", describe_shards(schema, plan.entries)}};
  plan.header_bytes = lay_out_safetensors(plan.header);
  return plan;
}

void require_same_tensors(const Schema& saved, const Schema& running, const std::string& where) {
  require_same_count(saved.layout.tensors(), running.layout.tensors(), where);
  for (int t = 0; t < saved.layout.tensors(); ++t) {
    const ParameterSpec& old = saved.layout.parameter(t);
    const ParameterSpec& now = running.layout.parameter(t);
    require_same_shape(old, now, where);
    require_equal(where, now.name, "its role", text_of(old.role), text_of(now.role));
    require_equal(where, now.name, "parts", text_of(old.parts), text_of(now.parts));
    require_equal(where, now.name, "tied names", text_of(old.tied_names), text_of(now.tied_names));
    require_equal(where, now.name, "rows of a unit", saved.layout.unit_rows(t),
                  running.layout.unit_rows(t));
    require_equal(where, now.name, "states", text_of(saved.states[static_cast<size_t>(t)]),
                  text_of(running.states[static_cast<size_t>(t)]));
  }
}

void require_same_shapes(const Schema& saved, std::span<const ParameterSpec> parameters,
                         const std::string& where) {
  require_same_count(saved.layout.tensors(), static_cast<int64_t>(parameters.size()), where);
  for (int t = 0; t < saved.layout.tensors(); ++t) {
    require_same_shape(saved.layout.parameter(t), parameters[static_cast<size_t>(t)], where);
  }
}

void require_weight_dtype(const Schema& saved, int tensor, DType running,
                          const std::string& where) {
  const DType dtype = saved.state(tensor, 0).dtype;
  if (dtype == running) return;
  throw Error(ExitCode::kCheckpoint,
              fmt::format("tensor {}: the weight is {}, the run has {}",
                          in_quotes(saved.layout.parameter(tensor).name), safetensors_dtype(dtype),
                          safetensors_dtype(running)),
              where, "use the model.dtype that it was saved with");
}

std::string_view safetensors_dtype(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return "BF16";
    case DType::kFP32:
      return "F32";
    case DType::kINT32:
      return "I32";
    case DType::kINT8:
      return "I8";
    case DType::kUINT8:
      return "U8";
    case DType::kINT16:
      return "I16";
    case DType::kUINT16:
      return "U16";
    case DType::kFP16:
      return "F16";
  }
  return "";
}

}  // namespace flashshard::checkpoint
