// Arguments of the CUDA kernels for masters, folds and norms; they travel as kernel arguments. Host
// code without CUDA in it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/update_table.h"
#include "kernels/numerics/exact_sum.h"

namespace flashshard::cuda {

/// A piece of an EncodeMaster or DecodeMaster.
struct MasterCall {
  WeightFormat format = WeightFormat::kSplit24;
  bool wide = false;
  float* values = nullptr;
  void* weight = nullptr;
  void* correction = nullptr;
  int64_t* rejected_groups = nullptr;
  uint32_t count = 0;
};
/// Pieces that together are the call: whole groups wide where the addresses allow it, the rest
/// narrow.
std::vector<MasterCall> plan_masters(const EncodeMaster& call);
std::vector<MasterCall> plan_masters(const DecodeMaster& call);

/// Most inputs of a fold: the ranks that one sums over.
constexpr int kMostInputs = 1024;

/// A piece of a Fold.
struct FoldCall {
  bool wide = false;
  bool accumulate = false;
  DType out_dtype = DType::kBF16, input_dtype = DType::kBF16;
  int inputs = 0;
  uint32_t count = 0;
  void* out = nullptr;
  const void* input[kMostInputs];
};
/// Throws Error(kUsage) for more inputs than a call may have.
std::vector<FoldCall> plan_fold(const Fold& call);

/// One contiguous run of groups whose squares are summed.
struct NormRun {
  const void* data = nullptr;
  DType dtype = DType::kBF16;
  uint32_t count = 0;
  uint32_t first_tile = 0;
  uint32_t end_tile = 0;
};
/// What a norm adds up: the limbs, and the groups left out.
constexpr int kNormSums = static_cast<int>(numerics::kExactSumLimbs) + 1;
struct NormTable {
  bool wide = false;
  int runs = 0;
  uint32_t tiles = 0;
  int64_t* sums = nullptr;  // kNormSums of them, of the device
  NormRun run[kMostRuns];
};
std::vector<NormTable> plan_norm(std::span<const Tensor> tensors, int64_t* sums);

}  // namespace flashshard::cuda
