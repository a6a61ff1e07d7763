// Starting the kernels: grid sizes and errors.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/cuda/update_table.h"
#include "kernels/error.h"

namespace flashshard::cuda {

constexpr int kThreads = 256;  // of a block
/// Blocks that a multiprocessor must have room for: caps the registers at 80 a thread.
constexpr int kBlocksOfMultiprocessor = 3;
constexpr int kWarps = kThreads / kLanesOfWarp;

/// Which group of its warp's tile a thread works on.
template <int E>
__device__ __forceinline__ uint32_t slot_of_thread() {
  constexpr uint32_t kLanesOfGroup = static_cast<uint32_t>(kGroup) / E;
  return threadIdx.x % kLanesOfWarp / kLanesOfGroup;
}
__device__ __forceinline__ uint32_t first_tile_of_warp() {
  return blockIdx.x * kWarps + threadIdx.x / kLanesOfWarp;
}
__device__ __forceinline__ uint32_t warps_of_grid() { return gridDim.x * kWarps; }

inline void require_success(cudaError_t status, const char* where) {
  if (status != cudaSuccess) {
    throw Error(ExitCode::kCommunication, std::string("CUDA: ") + cudaGetErrorString(status),
                where);
  }
}

/// As many blocks as the device holds at once, or as there is work for.
template <class Argument>
void launch(void (*kernel)(Argument), const Argument& argument, uint32_t tiles, cudaStream_t stream,
            const char* name) {
  int device = 0, multiprocessors = 0, resident = 0;
  require_success(cudaGetDevice(&device), name);
  require_success(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
                  name);
  require_success(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0),
                  name);
  const auto most = static_cast<uint32_t>(std::max(1, multiprocessors * resident));
  const uint32_t blocks = std::min(most, (tiles + kWarps - 1) / kWarps);
  void* arguments[] = {const_cast<Argument*>(&argument)};
  require_success(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks),
                                   dim3(kThreads), arguments, 0, stream),
                  name);
}

}  // namespace flashshard::cuda
