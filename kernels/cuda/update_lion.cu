// The update kernels of Lion.
#include "kernels/cuda/update_kernels.cuh"

namespace flashshard::cuda {

UpdateKernel wide_lion_kernel(StateFormat state, WeightFormat weight) {
  return wide_kernel<Family::kLion>(state, weight);
}

}  // namespace flashshard::cuda
