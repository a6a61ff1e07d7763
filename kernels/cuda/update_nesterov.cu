// The update kernels of SGD and SGDW with Nesterov's momentum.
#include "kernels/cuda/update_kernels.cuh"

namespace flashshard::cuda {

UpdateKernel wide_nesterov_kernel(StateFormat state, WeightFormat weight) {
  return wide_kernel<Family::kNesterov>(state, weight);
}

}  // namespace flashshard::cuda
