// The C entry for steps on a GPU: what it refuses, and how it fails without a device.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/capi/flashshard_cuda.h"
#include "kernels/cuda/device.h"

namespace {

/// SGD without states on 64 fp32 weights.
struct Call {
  std::vector<float> gradient = std::vector<float>(64, 1.0f), weight = gradient;
  fs_tensor tensor = {};
  fs_step step = {};

  Call() {
    tensor.struct_size = sizeof tensor;
    tensor.weight_format = FS_FP32;
    tensor.state_format = FS_STATE_FP32;
    tensor.gradient_type = FS_TYPE_FP32;
    tensor.count = 64;
    tensor.gradient = {gradient.data(), 256};
    tensor.weight = {weight.data(), 256};
    step.struct_size = sizeof step;
    step.rule = FS_SGD;
    step.learning_rate = 0.5;
    step.gradient_factor = 1;
    step.t = 1;
  }
  fs_status apply(int64_t count = 1) {
    return fs_cuda_apply_steps(&tensor, count, &step, nullptr, nullptr);
  }
  bool unchanged() const { return weight == Call().weight && gradient == Call().gradient; }
};

TEST(CudaCApi, RefusesWhatTheCpusCallRefuses) {
  Call wrong_size;
  wrong_size.tensor.weight.bytes = 252;
  EXPECT_EQ(wrong_size.apply(), FS_WRONG_SIZE);
  Call rate;
  rate.step.learning_rate = -1;
  EXPECT_EQ(rate.apply(), FS_OUT_OF_RANGE);
  Call overlap;
  overlap.tensor.gradient = overlap.tensor.weight;
  EXPECT_EQ(overlap.apply(), FS_OVERLAP);
  EXPECT_TRUE(wrong_size.unchanged() && rate.unchanged() && overlap.unchanged());
  Call good;
  EXPECT_EQ(fs_cuda_apply_steps(nullptr, 1, &good.step, nullptr, nullptr), FS_INVALID_ARGUMENT);
  EXPECT_EQ(fs_cuda_apply_steps(&good.tensor, 1, nullptr, nullptr, nullptr), FS_INVALID_ARGUMENT);
  EXPECT_EQ(good.apply(-1), FS_INVALID_ARGUMENT);
}

TEST(CudaCApi, TensorsOfOneCallShareNoMemory) {
  Call first, second;
  std::vector<fs_tensor> tensors = {first.tensor, second.tensor};
  tensors[1].weight = {first.weight.data(), 256};
  EXPECT_EQ(fs_cuda_apply_steps(tensors.data(), 2, &first.step, nullptr, nullptr), FS_OVERLAP);
  EXPECT_EQ(std::string(fs_last_error()), "weight of tensor 0 and weight of tensor 1 share memory");
}

TEST(CudaCApi, NoTensorsAreNoWork) { EXPECT_EQ(Call().apply(0), FS_OK); }

TEST(CudaCApi, WithoutADeviceSaysSoAndChangesNothing) {
  if (flashshard::visible_cuda_device()) GTEST_SKIP() << "there is a device";
  Call call;
  EXPECT_EQ(call.apply(), FS_DEVICE);
  EXPECT_EQ(std::string(fs_last_error()).find("CUDA: "), 0u) << fs_last_error();
  EXPECT_EQ(call.weight, call.gradient);
}

}  // namespace
