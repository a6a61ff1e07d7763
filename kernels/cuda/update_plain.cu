// The update kernels of SGD and SGDW without momentum.
#include "kernels/cuda/update_kernels.cuh"

namespace flashshard::cuda {

UpdateKernel wide_plain_kernel(StateFormat state, WeightFormat weight) {
  return wide_kernel<Family::kPlain>(state, weight);
}

}  // namespace flashshard::cuda
