#include "kernels/cuda/device.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace flashshard {
namespace {

TEST(VisibleCudaDevice, IsNoneWithoutADriverAndCompleteWithOne) {
  const auto device = visible_cuda_device();
  if (!std::filesystem::exists("/dev/nvidiactl")) {
    EXPECT_FALSE(device.has_value());
  }
  if (device) {
    EXPECT_FALSE(device->name.empty());
    EXPECT_GT(device->memory_bytes, 0);
    EXPECT_GE(device->compute_capability, 50);
  }
}

}  // namespace
}  // namespace flashshard
