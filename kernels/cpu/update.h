// Sharding and update operations of the CPU backend: folds, exact norms, codecs and
// update rules.
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
void encode_moment(const EncodeMoment& call, const ParallelFor& parallel_for);
void decode_moment(const DecodeMoment& call, const ParallelFor& parallel_for);
void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors,
            const ParallelFor& parallel_for);

}  // namespace flashshard::cpu
