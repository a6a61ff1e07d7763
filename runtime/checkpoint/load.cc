#include "runtime/checkpoint/load.h"

#include <fmt/format.h>

#include <optional>
#include <vector>

#include "runtime/agreement.h"
#include "runtime/checkpoint/reader.h"

namespace flashshard::checkpoint {
namespace {

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data), tensor.bytes()};
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

void append_weights(const Schema& saved, std::span<const Tensor> weights, const std::string& where,
                    std::vector<RowsWanted>& wanted) {
  for (size_t t = 0; t < weights.size(); ++t) {
    const int tensor = static_cast<int>(t);
    const ParameterSpec& parameter = saved.layout.parameter(tensor);
    require_weight_dtype(saved, tensor, weights[t].dtype, where);
    wanted.push_back({tensor, 0, {0, parameter.rows}, bytes_of(weights[t])});
  }
}

}  // namespace

RunState load(const LoadRequest& request, Communicator& communicator) {
  const auto what = fmt::format("cannot resume from {}", request.step_folder);
  std::optional<CheckpointReader> reader;
  LogicalHash loaded;
  const auto outcome = outcome_of([&] {
    reader.emplace(request.step_folder, *request.file_system);
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

}  // namespace flashshard::checkpoint
