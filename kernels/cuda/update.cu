#include <span>

#include "kernels/cuda/update.h"
#include "kernels/cuda/update_kernels.cuh"

namespace flashshard::cuda {
namespace {

UpdateKernel kernel_of(const UpdateLaunch& launch) {
  if (!launch.wide) return update_kernel<kNarrow, AnyChoice>;
  const StateFormat state = launch.table.state_format;
  const WeightFormat weight = launch.table.weight_format;
  switch (launch.table.family) {
    case Family::kAdam:
      return wide_adam_kernel(state, weight);
    case Family::kLion:
      return wide_lion_kernel(state, weight);
    case Family::kMomentum:
      return wide_momentum_kernel(state, weight);
    case Family::kNesterov:
      return wide_nesterov_kernel(state, weight);
    case Family::kPlain:
      break;
  }
  return wide_plain_kernel(state, weight);
}

}  // namespace

void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors, Stream stream) {
  for (const UpdateLaunch& each : plan_updates(tensors, factors)) {
    launch(kernel_of(each), each.table, each.table.tiles, stream, "update");
  }
}

}  // namespace flashshard::cuda
