// Sharding and update operations on an NVIDIA GPU: the counterpart of cpu/update.h, with the same
// bits. The arguments are those of backend.h; every pointer in them is to memory of the current
// device unless a comment says otherwise. Calls are asynchronous on `stream` but for the norm, keep
// nothing, allocate nothing on the device, and throw Error(kCommunication) when CUDA refuses.
// docs/cuda.md has the layout.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/backend.h"

struct CUstream_st;  // what a cudaStream_t points to

namespace flashshard::cuda {

using Stream = CUstream_st*;

/// `out` may be one of the inputs. At most 1024 of these, else Error(kUsage).
void fold(const Fold& call, Stream stream);
/// Bytes of device memory that exact_norm works in.
constexpr int64_t kNormWorkspaceBytes = 88;
/// Waits for the result. limbs and nonfinite_groups are host memory; limbs come back carried.
void exact_norm(const ExactNorm& call, void* workspace, Stream stream);
/// rejected_groups is of the device, here and in `update`.
void encode_master(const EncodeMaster& call, Stream stream);
void decode_master(const DecodeMaster& call, Stream stream);
/// One launch for all tensors of the same formats, up to 128 of them, and one more where some end
/// in a short group or start at addresses that 16-byte accesses cannot have. Health counters are
/// not sampled: Error(kInternal) where UpdateTensor::health is set.
void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors, Stream stream);

}  // namespace flashshard::cuda
