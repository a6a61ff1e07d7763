#include "runtime/checkpoint/master_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/numerics/bf16.h"

namespace flashshard::checkpoint {
namespace {

[[noreturn]] void refuse(const ParameterSpec& parameter, const StateRecord& state,
                         const std::string& where) {
  throw Error(ExitCode::kCheckpoint,
              fmt::format("tensor {}: {} is {}, which no weight format has",
                          in_quotes(parameter.name), state.name, safetensors_dtype(state.dtype)),
              where);
}

/// The state that holds a tensor's correction bits; 0 when it has none.
size_t correction_of(std::span<const StateRecord> states) {
  const auto found = std::ranges::find_if(states, [](const StateRecord& state) {
    return class_of_state(state.name) == StateClass::kCorrection;
  });
  return found == states.end() ? 0 : static_cast<size_t>(found - states.begin());
}

WeightFormat format_of(const ParameterSpec& parameter, std::span<const StateRecord> states,
                       const std::string& where) {
  const StateRecord& weight = states.front();
  const size_t correction = correction_of(states);
  if (weight.dtype == DType::kFP32 && correction == 0) return WeightFormat::kFP32;
  if (weight.dtype != DType::kBF16) refuse(parameter, weight, where);
  if (correction == 0) return WeightFormat::kBF16;
  const StateRecord& bits = states[correction];
  const bool v1 = bits.name == "error_correction";
  if (bits.group != 1) refuse(parameter, bits, where);
  switch (bits.dtype) {
    case DType::kINT8:
      return v1 ? WeightFormat::kCorrected24 : WeightFormat::kSplit24;
    case DType::kINT16:
      return v1 ? WeightFormat::kCorrected32 : WeightFormat::kSplit32;
    default:
      refuse(parameter, bits, where);
  }
}

/// The whole units that hold some rows.
RowRange units_around(const ShardLayout& layout, int tensor, RowRange rows) {
  const int64_t unit = layout.unit_rows(tensor);
  const int64_t first = rows.first / unit * unit;
  const int64_t last =
      std::min((rows.first + rows.count + unit - 1) / unit * unit, layout.parameter(tensor).rows);
  return {first, last - first};
}

}  // namespace

MasterReader::MasterReader(const CheckpointReader& checkpoint, Backend& backend)
    : checkpoint_(checkpoint), backend_(backend), rows_(checkpoint) {
  const Schema& schema = checkpoint.manifest().schema;
  for (int t = 0; t < schema.layout.tensors(); ++t) {
    const auto& states = schema.states[static_cast<size_t>(t)];
    formats_.push_back(format_of(schema.layout.parameter(t), states, checkpoint.folder()));
    correction_states_.push_back(correction_of(states));
  }
  hashed_rows_.resize(formats_.size());
}

void MasterReader::read_state(int tensor, size_t state, RowRange units,
                              std::vector<std::byte>& bytes) {
  const Schema& schema = checkpoint_.manifest().schema;
  const StateRecord& record = schema.state(tensor, state);
  const auto size_of_rows = [&](int64_t rows) {
    return static_cast<size_t>(bytes_of_rows(schema.layout, tensor, record, rows));
  };
  bytes.resize(size_of_rows(units.count));
  rows_.read({tensor, state, units, bytes});

  int64_t& hashed = hashed_rows_[static_cast<size_t>(tensor)][state == 0 ? 0 : 1];
  const int64_t first = std::max(units.first, hashed);
  if (first >= units.first + units.count) return;
  hasher_.add({.tensor = schema.layout.parameter(tensor).name,
               .state = record.name,
               .first_unit = first / schema.layout.unit_rows(tensor),
               .unit_bytes = unit_bytes(schema.layout, tensor, record),
               .bytes = std::span(bytes).subspan(size_of_rows(first - units.first))});
  hashed = units.first + units.count;
}

void MasterReader::read(int tensor, RowRange rows, WeightValue value, std::span<float> values) {
  const ShardLayout& layout = checkpoint_.manifest().schema.layout;
  const int64_t cols = layout.parameter(tensor).cols;
  const RowRange units = units_around(layout, tensor, rows);
  DecodeMaster call{.format = formats_[static_cast<size_t>(tensor)], .count = units.count * cols};
  read_state(tensor, 0, units, weight_);
  const size_t correction = correction_states_[static_cast<size_t>(tensor)];
  if (value == WeightValue::kMaster && correction != 0) {
    read_state(tensor, correction, units, correction_);
    call.correction = correction_.data();
  } else if (call.format != WeightFormat::kFP32) {
    call.format = WeightFormat::kBF16;
  }
  values_.resize(static_cast<size_t>(call.count));
  call.values = values_.data();
  call.weight = weight_.data();
  backend_.decode_master(call);
  backend_.synchronize();
  const auto skipped = static_cast<size_t>((rows.first - units.first) * cols);
  std::ranges::copy(std::span(values_).subspan(skipped, values.size()), values.begin());
}

void MasterReader::read_bf16(int tensor, RowRange rows, std::span<uint16_t> values) {
  const ShardLayout& layout = checkpoint_.manifest().schema.layout;
  if (formats_[static_cast<size_t>(tensor)] == WeightFormat::kFP32) {
    std::vector<float> exact(values.size());
    read(tensor, rows, WeightValue::kModel, exact);
    std::ranges::transform(exact, values.begin(), float_to_bf16);
    return;
  }
  const RowRange units = units_around(layout, tensor, rows);
  read_state(tensor, 0, units, weight_);
  const auto skipped =
      static_cast<size_t>((rows.first - units.first) * layout.parameter(tensor).cols);
  std::memcpy(values.data(), weight_.data() + skipped * sizeof(uint16_t), values.size_bytes());
}

void require_weights_of(const CheckpointReader& checkpoint, const LogicalHash& read,
                        WeightValue value) {
  for (const StateClass state : {StateClass::kWeights, StateClass::kCorrection}) {
    if (state == StateClass::kCorrection && value == WeightValue::kModel) continue;
    const Hash128 expected = checkpoint.manifest().logical_hash.of(state);
    if (read.of(state) == expected) continue;
    throw Error(ExitCode::kCheckpoint,
                fmt::format("what was read of the {} has the logical hash {}, the manifest says {}",
                            name_of(state), read.of(state).hex(), expected.hex()),
                checkpoint.folder(), "`flashshard verify` lists the damage");
  }
}

}  // namespace flashshard::checkpoint
