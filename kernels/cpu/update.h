// Sharding and update operations of the CPU backend: folds, exact norms, master weights, AdamW.
// Work is split over threads at group boundaries only, and no result depends on the split.
#pragma once

#include <span>

#include "kernels/backend.h"
#include "kernels/cpu/parallel_for.h"

namespace flashshard::cpu {

void fold(const Fold& call, const ParallelFor& parallel_for);
void exact_norm(const ExactNorm& call, const ParallelFor& parallel_for);
void encode_master(const EncodeMaster& call, const ParallelFor& parallel_for);
void decode_master(const DecodeMaster& call, const ParallelFor& parallel_for);
void adamw(std::span<const AdamWTensor> tensors, const AdamWFactors& factors,
           const ParallelFor& parallel_for);

}  // namespace flashshard::cpu
