// What a checkpoint holds and which bytes belong where: the tensors, the states stored for each,
// and the shard rule. One description serves the writer, the readers and `verify`, so that they
// cannot differ.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/tensor.h"
#include "optim/shard_layout.h"
#include "optim/sharded_state.h"
#include "runtime/checkpoint/safetensors.h"

namespace flashshard::checkpoint {

/// The weight's name among the states of a tensor; it comes first.
constexpr std::string_view kWeightState = "weight";

struct StateRecord {
  std::string name;
  DType dtype = DType::kBF16;
  int64_t group = 1;  // one element for each `group` weight elements

  friend bool operator==(const StateRecord&, const StateRecord&) = default;
};

struct Schema {
  ShardLayout layout;                            // of the ranks that write or wrote it
  std::vector<std::vector<StateRecord>> states;  // by tensor, the weight first

  const StateRecord& state(int tensor, size_t state) const {
    return states[static_cast<size_t>(tensor)][state];
  }
};

/// From a rank's views: every tensor's weight first, then its states (ShardedState::shard_views).
/// Throws Error(kInternal) when views and layout do not belong together.
Schema schema_of(const ShardLayout& layout, std::span<const ShardTensorView> views);

/// Bytes of `rows` whole units of a state, and of one unit that is not short.
int64_t bytes_of_rows(const ShardLayout& layout, int tensor, const StateRecord& state,
                      int64_t rows);
int64_t unit_bytes(const ShardLayout& layout, int tensor, const StateRecord& state);

/// A rank has two files: its rows of the weights, and its rows of every other state.
enum class FileKind : uint8_t { kWeights, kState };
std::string file_name(FileKind kind, int rank);  // "weights-00000.safetensors"

/// One tensor of a rank's file.
struct ShardEntry {
  int tensor = 0;
  size_t state = 0;  // in Schema::states
  RowRange rows;
};

/// A rank's file as it must be: entries and safetensors header in the order of their bytes. Tensors
/// of which the rank owns no row are left out; larger elements come first, so that every tensor is
/// aligned.
struct ShardFilePlan {
  std::string name;
  std::vector<ShardEntry> entries;
  SafetensorsHeader header;  // header.entries[i] belongs to entries[i]
  std::string header_bytes;  // all bytes before the data
};
ShardFilePlan plan_file(const Schema& schema, FileKind kind, int rank);

/// Throws Error(kCheckpoint) naming tensor and field when a saved schema cannot serve a run: names,
/// shapes, roles, parts, tied names, units, states and their formats. Settings of the optimizer
/// (decay, layer of a bucket) may differ.
void require_same_tensors(const Schema& saved, const Schema& running, const std::string& where);
/// The same for a model alone, as `eval` and `generate` need it: names and shapes.
void require_same_shapes(const Schema& saved, std::span<const ParameterSpec> parameters,
                         const std::string& where);

/// The same for the type of a tensor's weight.
void require_weight_dtype(const Schema& saved, int tensor, DType running, const std::string& where);

std::string_view safetensors_dtype(DType dtype);

}  // namespace flashshard::checkpoint
