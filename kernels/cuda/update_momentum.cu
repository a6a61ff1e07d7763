// The update kernels of SGD and SGDW with momentum.
#include "kernels/cuda/update_kernels.cuh"

namespace flashshard::cuda {

UpdateKernel wide_momentum_kernel(StateFormat state, WeightFormat weight) {
  return wide_kernel<Family::kMomentum>(state, weight);
}

}  // namespace flashshard::cuda
