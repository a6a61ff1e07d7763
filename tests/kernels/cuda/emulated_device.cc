// The parity tests' device, emulated: works on the host's memory as it is.
#include "tests/kernels/cuda/device_under_test.h"
#include "tests/kernels/cuda/emulated_lanes.h"

namespace flashshard::device_under_test {

std::string unavailable() { return {}; }

void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors) {
  cuda::emulation::update(tensors, factors);
}
void fold(const Fold& call) { cuda::emulation::fold(call); }
void exact_norm(const ExactNorm& call) { cuda::emulation::exact_norm(call); }
void encode_master(const EncodeMaster& call) { cuda::emulation::encode_master(call); }
void decode_master(const DecodeMaster& call) { cuda::emulation::decode_master(call); }

}  // namespace flashshard::device_under_test
