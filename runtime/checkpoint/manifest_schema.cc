#include "runtime/checkpoint/manifest_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "proto/checkpoint.pb.h"

namespace flashshard::checkpoint {
namespace {

using TensorMessage = proto::Manifest::Tensor;

// Sizes above these are no model's; below them no product of two and an element's size overflows.
constexpr int64_t kMostElements = int64_t{1} << 56;
// A unit is held in memory before a byte of it is read. Its rows are at most a group's size, its
// elements at most a group of the longest rows.
constexpr int64_t kMostUnitRows = int64_t{1} << 16;
constexpr int64_t kMostUnitElements = int64_t{1} << 26;
constexpr int kMostRanks = 1 << 20;
constexpr int kMostStates = 16;

constexpr std::array<std::pair<DType, proto::Manifest::DType>, 8> kDTypes = {
    {{DType::kBF16, proto::Manifest::BF16},
     {DType::kFP32, proto::Manifest::F32},
     {DType::kINT32, proto::Manifest::I32},
     {DType::kINT8, proto::Manifest::I8},
     {DType::kUINT8, proto::Manifest::U8},
     {DType::kINT16, proto::Manifest::I16},
     {DType::kUINT16, proto::Manifest::U16},
     {DType::kFP16, proto::Manifest::F16}}};

constexpr std::array<std::pair<ParameterRole, proto::Manifest::Role>, 3> kRoles = {
    {{ParameterRole::kMatrix, proto::Manifest::MATRIX},
     {ParameterRole::kVector, proto::Manifest::VECTOR},
     {ParameterRole::kEmbedding, proto::Manifest::EMBEDDING}}};

proto::Manifest::DType message_of(DType dtype) {
  for (const auto& [ours, theirs] : kDTypes) {
    if (ours == dtype) return theirs;
  }
  return proto::Manifest::UNKNOWN;
}

proto::Manifest::Role message_of(ParameterRole role) {
  for (const auto& [ours, theirs] : kRoles) {
    if (ours == role) return theirs;
  }
  return proto::Manifest::MATRIX;
}

/// One tensor of an untrusted manifest.
class TensorReader {
 public:
  TensorReader(const TensorMessage& message, const std::string& where)
      : message_(message), where_(where) {}

  ParameterSpec parameter() const {
    require(!message_.name().empty(), "name is empty");
    require(message_.rows() > 0 && message_.cols() > 0, "rows and cols must be positive");
    require(message_.rows() <= kMostElements / message_.cols(), "rows and cols are too large");
    require(message_.orientation() == proto::Manifest::AS_NAMED,
            "this release knows no tensor stored transposed");
    ParameterSpec parameter;
    parameter.name = message_.name();
    parameter.rows = message_.rows();
    parameter.cols = message_.cols();
    parameter.role = role();
    parameter.decay = message_.decay();
    parameter.layer = message_.layer();
    for (const auto& part : message_.parts()) {
      require(part.first_row() >= 0 && part.rows() > 0 && part.first_row() <= message_.rows() &&
                  part.rows() <= message_.rows() - part.first_row(),
              fmt::format("part {} lies outside it", in_quotes(part.name())));
      parameter.parts.push_back({part.name(), part.first_row(), part.rows()});
    }
    parameter.tied_names.assign(message_.tied_names().begin(), message_.tied_names().end());
    return parameter;
  }

  int64_t unit_rows() const {
    const int64_t rows = message_.unit_rows();
    require(rows > 0 && rows <= kMostUnitRows && rows <= kMostUnitElements / message_.cols(),
            "unit_rows is out of range");
    return rows;
  }

  std::vector<StateRecord> states() const {
    std::vector<StateRecord> records;
    std::set<std::string> names;
    require(message_.states_size() <= kMostStates, "too many states");
    for (const auto& state : message_.states()) {
      const std::string of = fmt::format("state {}", in_quotes(state.name()));
      require(is_identifier(state.name()) && names.insert(state.name()).second,
              of + ": wants a name of its own, of letters, digits and _");
      require(state.group() > 0 && unit_rows() * message_.cols() % state.group() == 0,
              of + ": its groups do not fill a unit");
      records.push_back({state.name(), dtype_of(state.dtype(), of), state.group()});
    }
    require(!records.empty() && records[0].name == kWeightState && records[0].group == 1,
            "the first state must be the weight");
    return records;
  }

 private:
  static bool is_identifier(const std::string& name) {
    return !name.empty() && std::ranges::all_of(name, [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
    });
  }
  void require(bool holds, std::string_view what) const {
    if (holds) return;
    throw Error(ExitCode::kCheckpoint,
                fmt::format("bad manifest: tensor {}: {}", in_quotes(message_.name()), what),
                where_);
  }
  ParameterRole role() const {
    for (const auto& [ours, theirs] : kRoles) {
      if (theirs == message_.role()) return ours;
    }
    require(false, "unknown role");
    return {};
  }
  DType dtype_of(proto::Manifest::DType dtype, const std::string& of) const {
    for (const auto& [ours, theirs] : kDTypes) {
      if (theirs == dtype) return ours;
    }
    require(false, of + ": unknown dtype");
    return {};
  }

  const TensorMessage& message_;
  const std::string& where_;
};

}  // namespace

void write_schema(const Schema& schema, proto::Manifest& message) {
  message.set_world_size(schema.layout.world_size());
  for (int t = 0; t < schema.layout.tensors(); ++t) {
    const ParameterSpec& parameter = schema.layout.parameter(t);
    TensorMessage& tensor = *message.add_tensors();
    tensor.set_name(parameter.name);
    tensor.set_rows(parameter.rows);
    tensor.set_cols(parameter.cols);
    tensor.set_role(message_of(parameter.role));
    tensor.set_decay(parameter.decay);
    tensor.set_layer(parameter.layer);
    tensor.set_orientation(proto::Manifest::AS_NAMED);
    for (const ParameterPart& part : parameter.parts) {
      auto* entry = tensor.add_parts();
      entry->set_name(part.name);
      entry->set_first_row(part.first_row);
      entry->set_rows(part.rows);
    }
    for (const std::string& name : parameter.tied_names) tensor.add_tied_names(name);
    tensor.set_unit_rows(schema.layout.unit_rows(t));
    for (const StateRecord& state : schema.states[static_cast<size_t>(t)]) {
      auto* entry = tensor.add_states();
      entry->set_name(state.name);
      entry->set_dtype(message_of(state.dtype));
      entry->set_group(state.group);
    }
  }
}

Schema read_schema(const proto::Manifest& message, const std::string& where) {
  if (message.world_size() <= 0 || message.world_size() > kMostRanks) {
    throw Error(ExitCode::kCheckpoint,
                fmt::format("bad manifest: a world size of {}", message.world_size()), where);
  }
  std::vector<ParameterSpec> parameters;
  std::vector<int64_t> unit_rows;
  std::vector<std::vector<StateRecord>> states;
  std::set<std::string> names;
  int64_t elements = 0;
  if (message.tensors().empty()) {
    throw Error(ExitCode::kCheckpoint, "bad manifest: it has no tensors", where);
  }
  for (const TensorMessage& tensor : message.tensors()) {
    if (!names.insert(tensor.name()).second) {
      throw Error(ExitCode::kCheckpoint,
                  fmt::format("bad manifest: tensor {} stands twice", in_quotes(tensor.name())),
                  where);
    }
    const TensorReader reader(tensor, where);
    parameters.push_back(reader.parameter());
    elements += parameters.back().elements();
    if (elements > kMostElements) {
      throw Error(ExitCode::kCheckpoint, "bad manifest: its tensors are too large", where);
    }
    unit_rows.push_back(reader.unit_rows());
    states.push_back(reader.states());
  }
  return {ShardLayout(std::move(parameters), std::move(unit_rows), message.world_size()),
          std::move(states)};
}

}  // namespace flashshard::checkpoint
