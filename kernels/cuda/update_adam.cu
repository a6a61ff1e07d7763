// The update kernels of Adam and AdamW.
#include "kernels/cuda/update_kernels.cuh"

namespace flashshard::cuda {

UpdateKernel wide_adam_kernel(StateFormat state, WeightFormat weight) {
  return wide_kernel<Family::kAdam>(state, weight);
}

}  // namespace flashshard::cuda
