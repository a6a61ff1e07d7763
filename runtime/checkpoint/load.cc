#include "runtime/checkpoint/load.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "runtime/agreement.h"
#include "runtime/checkpoint/reader.h"

namespace flashshard::checkpoint {
namespace {

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data), tensor.bytes()};
}

void require_world_size(const CheckpointReader& reader, int running) {
  const int saved = reader.manifest().schema.layout.world_size();
  if (saved == running) return;
  throw Error(ExitCode::kCheckpoint,
              fmt::format("this checkpoint was saved by {} ranks, the run has {}", saved, running),
              reader.folder(), fmt::format("start it with {} ranks", saved));
}

std::vector<RowsWanted> wanted_by_views(std::span<const ShardTensorView> views) {
  std::vector<RowsWanted> wanted;
  size_t state = 0;
  for (const ShardTensorView& view : views) {
    state = view.state == kWeightState ? 0 : state + 1;
    wanted.push_back({view.tensor, state, view.rows, view.bytes});
  }
  return wanted;
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

void append_weights(const Schema& saved, std::span<const Tensor> weights, const std::string& where,
                    std::vector<RowsWanted>& wanted) {
  for (size_t t = 0; t < weights.size(); ++t) {
    const int tensor = static_cast<int>(t);
    require_weight_dtype(saved, tensor, weights[t].dtype, where);
    wanted.push_back({tensor, 0, {0, saved.layout.parameter(tensor).rows}, bytes_of(weights[t])});
  }
}

}  // namespace

RunState load(const LoadRequest& request, Communicator& communicator) {
  const auto what = fmt::format("cannot resume from {}", request.step_folder);
  std::optional<CheckpointReader> reader;
  LogicalHash loaded;
  const auto outcome = outcome_of([&] {
    reader.emplace(request.step_folder, *request.file_system);
    require_world_size(*reader, request.layout->world_size());
    require_same_tensors(reader->manifest().schema, schema_of(*request.layout, request.views),
                         request.step_folder);
    std::vector<RowsWanted> wanted = wanted_by_views(request.views);
    append_weights(reader->manifest().schema, request.weights, request.step_folder, wanted);
    reader->read(wanted);
    loaded = hash_of_views(*request.layout, request.views);
  });
  agree(communicator, outcome, what);

  loaded = all_reduce(loaded, communicator);
  agree(communicator, outcome_of([&] {
          if (loaded == reader->manifest().logical_hash) return;
          throw Error(
              ExitCode::kCheckpoint,
              fmt::format("what was loaded has the logical hash {}, the manifest says {}",
                          loaded.total().hex(), reader->manifest().logical_hash.total().hex()),
              "", "`flashshard verify` lists the damage; resume from another checkpoint");
        }),
        what);
  return reader->manifest().run;
}

RunState read_run_state(const std::string& step_folder, FileSystem& file_system) {
  return CheckpointReader(step_folder, file_system).manifest().run;
}

void read_weights(const std::string& step_folder, std::span<const ParameterSpec> parameters,
                  std::span<const Tensor> weights, FileSystem& file_system) {
  const CheckpointReader reader(step_folder, file_system);
  require_same_shapes(reader.manifest().schema, parameters, step_folder);
  std::vector<RowsWanted> wanted;
  append_weights(reader.manifest().schema, weights, step_folder, wanted);
  reader.read(wanted);
}

void read_weight_rows(const std::string& step_folder, std::span<const ParameterSpec> parameters,
                      std::span<const ShardTensorView> views, FileSystem& file_system) {
  const CheckpointReader reader(step_folder, file_system);
  require_same_shapes(reader.manifest().schema, parameters, step_folder);
  std::vector<std::byte> whole;  // what is read whole is checked against its hash
  for (const ShardTensorView& view : views) {
    if (view.state != kWeightState) continue;
    require_weight_dtype(reader.manifest().schema, view.tensor, view.dtype, step_folder);
    const ParameterSpec& parameter = parameters[static_cast<size_t>(view.tensor)];
    const size_t row_bytes = static_cast<size_t>(parameter.cols) * size_of(view.dtype);
    whole.resize(static_cast<size_t>(parameter.rows) * row_bytes);
    const RowsWanted wanted{view.tensor, 0, {0, parameter.rows}, whole};
    reader.read({&wanted, 1});
    std::copy_n(whole.begin() + view.rows.first * static_cast<int64_t>(row_bytes),
                view.bytes.size(), view.bytes.begin());
  }
}

}  // namespace flashshard::checkpoint
