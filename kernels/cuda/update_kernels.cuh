// The kernels of the update: one for each rule and pair of formats that has its own, one for all.
#pragma once

#include <utility>

#include "kernels/cuda/lane_code.cuh"
#include "kernels/cuda/launch.cuh"

namespace flashshard::cuda {

using UpdateKernel = void (*)(UpdateTable);

// The wide kernel of a combination, null where there is none; each family's in a source of its own.
UpdateKernel wide_adam_kernel(StateFormat state, WeightFormat weight);
UpdateKernel wide_lion_kernel(StateFormat state, WeightFormat weight);
UpdateKernel wide_momentum_kernel(StateFormat state, WeightFormat weight);
UpdateKernel wide_nesterov_kernel(StateFormat state, WeightFormat weight);
UpdateKernel wide_plain_kernel(StateFormat state, WeightFormat weight);

namespace {

/// Warps take the table's tiles in turn; its runs' tiles lie one after another.
template <int E, class Choice>
__global__ void __launch_bounds__(kThreads, kBlocksOfMultiprocessor)
    update_kernel(const __grid_constant__ UpdateTable table) {
  int run = 0;
  for (uint32_t tile = first_tile_of_warp(); tile < table.tiles; tile += warps_of_grid()) {
    while (tile >= table.run[run].end_tile) ++run;
    WarpLanes<UpdateLane<E>, static_cast<int>(kGroup) / E> lanes;
    update_group<LaneArithmetic, E, Choice>(lanes, table, table.run[run], tile,
                                            slot_of_thread<E>());
  }
}

template <Family family, StateFormat state, WeightFormat weight>
constexpr UpdateKernel wide_kernel_of() {
  constexpr bool kStateless = !has_momentum(family) && state != StateFormat::kFP32;
  if constexpr (has_wide_kernel(state, weight) && !kStateless) {
    return update_kernel<kWide, FixedChoice<family, state, weight>>;
  } else {
    return nullptr;
  }
}

template <Family family, StateFormat state, int... weights>
UpdateKernel wide_kernel_of(WeightFormat weight, std::integer_sequence<int, weights...>) {
  constexpr UpdateKernel kKernels[] = {
      wide_kernel_of<family, state, static_cast<WeightFormat>(weights)>()...};
  return kKernels[static_cast<int>(weight)];
}

template <Family family>
UpdateKernel wide_kernel(StateFormat state, WeightFormat weight) {
  constexpr std::make_integer_sequence<int, static_cast<int>(WeightFormat::kFP16) + 1> kAll;
  switch (state) {
    case StateFormat::kCompanded:
      return wide_kernel_of<family, StateFormat::kCompanded>(weight, kAll);
    case StateFormat::kFP32:
      return wide_kernel_of<family, StateFormat::kFP32>(weight, kAll);
    case StateFormat::kFlashOptim:
      return wide_kernel_of<family, StateFormat::kFlashOptim>(weight, kAll);
  }
  return nullptr;
}

}  // namespace
}  // namespace flashshard::cuda
