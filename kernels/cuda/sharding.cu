// Kernels of folds, norms and masters.
#include "kernels/cuda/lane_code.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/update.h"

namespace flashshard::cuda {
namespace {

static_assert(kNormWorkspaceBytes == kNormSums * sizeof(int64_t));

template <int E>
__global__ void __launch_bounds__(kThreads, kBlocksOfMultiprocessor)
    encode_master_kernel(const __grid_constant__ MasterCall call) {
  for (uint32_t tile = first_tile_of_warp(); tile < tiles_of(call.count, E);
       tile += warps_of_grid()) {
    WarpLanes<MasterLane<E>, static_cast<int>(kGroup) / E> lanes;
    encode_master_group<LaneArithmetic, E>(lanes, call, tile, slot_of_thread<E>());
  }
}

template <int E>
__global__ void __launch_bounds__(kThreads, kBlocksOfMultiprocessor)
    decode_master_kernel(const __grid_constant__ MasterCall call) {
  for (uint32_t tile = first_tile_of_warp(); tile < tiles_of(call.count, E);
       tile += warps_of_grid()) {
    WarpLanes<MasterLane<E>, static_cast<int>(kGroup) / E> lanes;
    decode_master_group<LaneArithmetic, E>(lanes, call, tile, slot_of_thread<E>());
  }
}

template <int E>
__global__ void __launch_bounds__(kThreads, kBlocksOfMultiprocessor)
    fold_kernel(const __grid_constant__ FoldCall call) {
  for (uint32_t tile = first_tile_of_warp(); tile < tiles_of(call.count, E);
       tile += warps_of_grid()) {
    WarpLanes<FoldLane<E>, static_cast<int>(kGroup) / E> lanes;
    fold_group<LaneArithmetic, E>(lanes, call, tile, slot_of_thread<E>());
  }
}

/// Every group's leader has sums of its own in shared memory; a block adds its sums to the device's
/// at the end. Integer sums: no order changes them.
template <int E>
__global__ void __launch_bounds__(kThreads, kBlocksOfMultiprocessor)
    norm_kernel(const __grid_constant__ NormTable table) {
  constexpr int kLeaders = kThreads * E / static_cast<int>(kGroup);
  __shared__ int64_t sums[kLeaders][kNormSums];
  for (int i = static_cast<int>(threadIdx.x); i < kLeaders * kNormSums; i += kThreads) {
    sums[i / kNormSums][i % kNormSums] = 0;
  }
  __syncthreads();
  int run = 0;
  for (uint32_t tile = first_tile_of_warp(); tile < table.tiles; tile += warps_of_grid()) {
    while (tile >= table.run[run].end_tile) ++run;
    WarpLanes<NormLane<E>, static_cast<int>(kGroup) / E> lanes;
    add_group_of_squares<LaneArithmetic, E>(lanes, table.run[run], tile, slot_of_thread<E>(),
                                            sums[threadIdx.x * E / static_cast<int>(kGroup)]);
  }
  __syncthreads();
  if (threadIdx.x < kNormSums) {
    int64_t sum = 0;
    for (int leader = 0; leader < kLeaders; ++leader) sum += sums[leader][threadIdx.x];
    if (sum != 0) add_to_counter(table.sums + threadIdx.x, sum);
  }
}

}  // namespace

void encode_master(const EncodeMaster& call, Stream stream) {
  for (const MasterCall& each : plan_masters(call)) {
    launch(each.wide ? encode_master_kernel<kWide> : encode_master_kernel<kNarrow>, each,
           tiles_of(each.count, each.wide ? kWide : kNarrow), stream, "encode_master");
  }
}

void decode_master(const DecodeMaster& call, Stream stream) {
  for (const MasterCall& each : plan_masters(call)) {
    launch(each.wide ? decode_master_kernel<kWide> : decode_master_kernel<kNarrow>, each,
           tiles_of(each.count, each.wide ? kWide : kNarrow), stream, "decode_master");
  }
}

void fold(const Fold& call, Stream stream) {
  for (const FoldCall& each : plan_fold(call)) {
    launch(each.wide ? fold_kernel<kWide> : fold_kernel<kNarrow>, each,
           tiles_of(each.count, each.wide ? kWide : kNarrow), stream, "fold");
  }
}

void exact_norm(const ExactNorm& call, void* workspace, Stream stream) {
  int64_t sums[kNormSums] = {};
  require_success(cudaMemsetAsync(workspace, 0, sizeof sums, stream), "exact_norm");
  for (const NormTable& table : plan_norm(call.tensors, static_cast<int64_t*>(workspace))) {
    launch(table.wide ? norm_kernel<kWide> : norm_kernel<kNarrow>, table, table.tiles, stream,
           "exact_norm");
  }
  require_success(cudaMemcpyAsync(sums, workspace, sizeof sums, cudaMemcpyDeviceToHost, stream),
                  "exact_norm");
  require_success(cudaStreamSynchronize(stream), "exact_norm");
  numerics::merge_exact(call.limbs, std::span<const int64_t, numerics::kExactSumLimbs>(
                                        sums, numerics::kExactSumLimbs));
  numerics::carry_exact(call.limbs);
  if (call.nonfinite_groups != nullptr) {
    *call.nonfinite_groups += sums[numerics::kExactSumLimbs];
  }
}

}  // namespace flashshard::cuda
