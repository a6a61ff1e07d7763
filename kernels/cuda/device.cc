#include "kernels/cuda/device.h"

#ifdef FLASHSHARD_HAVE_CUDA
#include <cuda_runtime_api.h>
#endif

namespace flashshard {

std::optional<CudaDevice> visible_cuda_device() {
#ifdef FLASHSHARD_HAVE_CUDA
  int devices = 0;
  cudaDeviceProp properties = {};
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return std::nullopt;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return std::nullopt;
  return CudaDevice{properties.name, static_cast<int64_t>(properties.totalGlobalMem),
                    10 * properties.major + properties.minor};
#else
  return std::nullopt;
#endif
}

}  // namespace flashshard
