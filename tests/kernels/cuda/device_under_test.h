// What the parity tests run: the CUDA kernels on a GPU, or their emulation on the CPU. One source
// of each, linked with the same tests. All arguments are host memory, as for the CPU backend.
#pragma once

#include <span>
#include <string>

#include "kernels/backend.h"

namespace flashshard::device_under_test {

/// Why nothing can run here, or empty.
std::string unavailable();

void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors);
void fold(const Fold& call);
void exact_norm(const ExactNorm& call);
void encode_master(const EncodeMaster& call);
void decode_master(const DecodeMaster& call);

}  // namespace flashshard::device_under_test
