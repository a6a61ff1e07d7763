// Which CUDA device this process could use. Builds without CUDA see none.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace flashshard {

struct CudaDevice {
  std::string name;            // "NVIDIA H100 80GB HBM3"
  int64_t memory_bytes = 0;    // in all
  int compute_capability = 0;  // 90 for sm_90
};

/// The first device that the driver shows; nothing without a device, a driver or a CUDA build.
/// Never throws.
std::optional<CudaDevice> visible_cuda_device();

}  // namespace flashshard
