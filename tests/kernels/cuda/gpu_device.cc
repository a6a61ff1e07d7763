// The parity tests' device, a GPU: arguments are copied to its memory, at addresses aligned as the
// host's are, and results back.
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/update.h"
#include "tests/kernels/cuda/device_under_test.h"

namespace flashshard::device_under_test {
namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

/// Copies of host memory for one call; those that were not const come back with take_back.
class DeviceCopies {
 public:
  DeviceCopies() = default;
  DeviceCopies(const DeviceCopies&) = delete;
  DeviceCopies& operator=(const DeviceCopies&) = delete;
  ~DeviceCopies() {
    for (const Copy& copy : copies_) cudaFree(copy.memory);
  }

  /// The same address twice gives the same copy.
  template <class T>
  T* of(T* host, size_t bytes) {
    if (host == nullptr || bytes == 0) return host;
    void* const address = const_cast<void*>(static_cast<const void*>(host));
    for (const Copy& copy : copies_) {
      if (copy.host == address) return static_cast<T*>(copy.device);
    }
    Copy copy{address, nullptr, nullptr, bytes, !std::is_const_v<T>};
    const size_t offset = reinterpret_cast<uintptr_t>(address) % kAlignment;
    check(cudaMalloc(&copy.memory, bytes + offset));
    copy.device = static_cast<std::byte*>(copy.memory) + offset;
    copies_.push_back(copy);
    check(cudaMemcpy(copy.device, address, bytes, cudaMemcpyHostToDevice));
    return static_cast<T*>(copy.device);
  }
  void take_back() {
    check(cudaDeviceSynchronize());
    for (const Copy& copy : copies_) {
      if (copy.written) {
        check(cudaMemcpy(copy.host, copy.device, copy.bytes, cudaMemcpyDeviceToHost));
      }
    }
  }

 private:
  static constexpr size_t kAlignment = 16;  // of the widest access
  struct Copy {
    void* host;
    void* memory;
    void* device;
    size_t bytes;
    bool written;
  };
  std::vector<Copy> copies_;
};

}  // namespace

std::string unavailable() { return visible_cuda_device() ? "" : "no CUDA device is visible"; }

void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors) {
  DeviceCopies copies;
  std::vector<UpdateTensor> on_device(tensors.begin(), tensors.end());
  for (UpdateTensor& t : on_device) {
    const auto count = static_cast<size_t>(t.count);
    const size_t state = has_codes(t.state_format) ? 1 : 4;
    const size_t scales = (count + kGroup - 1) / kGroup * 2;
    t.gradient = copies.of(t.gradient, count * size_of(t.gradient_dtype));
    t.weight = copies.of(t.weight, count * static_cast<size_t>(weight_bytes(t.weight_format)));
    t.correction =
        copies.of(t.correction, count * static_cast<size_t>(correction_bytes(t.weight_format)));
    t.momentum = copies.of(t.momentum, count * state);
    t.variance = copies.of(t.variance, count * state);
    t.momentum_scale = copies.of(t.momentum_scale, scales);
    t.variance_scale = copies.of(t.variance_scale, scales);
    t.rejected_groups = copies.of(t.rejected_groups, sizeof(int64_t));
  }
  cuda::update(on_device, factors, nullptr);
  copies.take_back();
}

void fold(const Fold& call) {
  DeviceCopies copies;
  Fold on_device = call;
  const auto count = static_cast<size_t>(call.out.elements());
  on_device.out.data = copies.of(call.out.data, call.out.bytes());
  std::vector<const void*> inputs;
  for (const void* input : call.inputs) {
    inputs.push_back(copies.of(input, count * size_of(call.input_dtype)));
  }
  on_device.inputs = inputs;
  cuda::fold(on_device, nullptr);
  copies.take_back();
}

void exact_norm(const ExactNorm& call) {
  DeviceCopies copies;
  std::vector<Tensor> tensors(call.tensors.begin(), call.tensors.end());
  for (Tensor& tensor : tensors) tensor.data = copies.of(tensor.data, tensor.bytes());
  std::vector<std::byte> workspace(cuda::kNormWorkspaceBytes);
  ExactNorm on_device = call;
  on_device.tensors = tensors;
  cuda::exact_norm(on_device, copies.of(workspace.data(), workspace.size()), nullptr);
}

void encode_master(const EncodeMaster& call) {
  DeviceCopies copies;
  const auto count = static_cast<size_t>(call.count);
  EncodeMaster on_device = call;
  on_device.values = copies.of(call.values, count * sizeof(float));
  on_device.weight = copies.of(call.weight, count * static_cast<size_t>(weight_bytes(call.format)));
  on_device.correction =
      copies.of(call.correction, count * static_cast<size_t>(correction_bytes(call.format)));
  on_device.rejected_groups = copies.of(call.rejected_groups, sizeof(int64_t));
  cuda::encode_master(on_device, nullptr);
  copies.take_back();
}

void decode_master(const DecodeMaster& call) {
  DeviceCopies copies;
  const auto count = static_cast<size_t>(call.count);
  DecodeMaster on_device = call;
  on_device.values = copies.of(call.values, count * sizeof(float));
  on_device.weight = copies.of(call.weight, count * static_cast<size_t>(weight_bytes(call.format)));
  on_device.correction =
      copies.of(call.correction, count * static_cast<size_t>(correction_bytes(call.format)));
  cuda::decode_master(on_device, nullptr);
  copies.take_back();
}

}  // namespace flashshard::device_under_test
