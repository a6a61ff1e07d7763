// How an update is laid out for the CUDA kernels: runs of groups in tables that travel as kernel
// arguments, so a call allocates and copies nothing on the device. Host code without CUDA in it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/numerics/update_args.h"
#include "kernels/numerics/update_family.h"

namespace flashshard::cuda {

constexpr int kLanesOfWarp = 32;
/// Elements of one lane. With 8 a group is four lanes' and a lane reads 16 bytes of bf16 at once;
/// with 1, any alignment and any length will do.
constexpr int kWide = 8, kNarrow = 1;
/// Groups that a warp works on together: a tile.
constexpr int groups_of_tile(int elements_of_lane) {
  return kLanesOfWarp * elements_of_lane / static_cast<int>(kGroup);
}
constexpr uint32_t tiles_of(uint32_t count, uint32_t elements_of_lane) {
  const uint32_t size = kLanesOfWarp * elements_of_lane;
  return (count + size - 1) / size;
}
/// Most elements of a run, so that a table's tiles have 32-bit numbers.
constexpr int64_t kRunSpan = int64_t{1} << 29;

/// One contiguous run of groups. Pointers are to its first element or scale.
struct UpdateRun {
  const void* gradient = nullptr;
  void* weight = nullptr;
  void* correction = nullptr;
  void* momentum = nullptr;
  void* variance = nullptr;
  uint16_t* momentum_scale = nullptr;
  uint16_t* variance_scale = nullptr;
  int64_t* rejected_groups = nullptr;
  uint32_t count = 0;       // elements, kRunSpan at most
  uint32_t first_tile = 0;  // of the table's tiles
  uint32_t end_tile = 0;    // the next run's first
  // Hash input of noise word 0: 8-bit noise has four elements to a word, 16-bit noise two. No run
  // lies across a change of the keys.
  uint32_t word8 = 0, key8 = 0, word16 = 0, key16 = 0;
  float weight_decay_factor = 1.0f;
  float coupled_decay = 0.0f;  // 0: none
};

/// As many as keep a table well below the 32764 bytes that kernel arguments may have.
constexpr int kMostRuns = 128;

/// What one launch does.
struct UpdateTable {
  UpdateFactors factors;
  // What a kernel for every combination goes by; the others know theirs.
  Family family = Family::kAdam;
  StateFormat state_format = StateFormat::kCompanded;
  WeightFormat weight_format = WeightFormat::kSplit24;
  DType gradient_dtype = DType::kBF16;
  int runs = 0;
  uint32_t tiles = 0;
  UpdateRun run[kMostRuns];
};

/// One launch: `wide` with kWide elements a lane and a kernel of its own.
struct UpdateLaunch {
  bool wide = false;
  UpdateTable table;
};

/// The combinations with a kernel of their own: each state format with its own weight formats, and
/// fp32 state with V2's. All others share one narrow kernel.
constexpr bool has_wide_kernel(StateFormat state, WeightFormat weight) {
  const bool split = weight == WeightFormat::kSplit24 || weight == WeightFormat::kSplit32;
  const bool plain = weight == WeightFormat::kBF16 || weight == WeightFormat::kFP32;
  return plain || (state == StateFormat::kFlashOptim) != split;
}

/// The launches of one call: one for all tensors of a combination of formats (up to kMostRuns), and
/// another where tensors end in a short group or start at addresses that wide accesses cannot have.
std::vector<UpdateLaunch> plan_updates(std::span<const UpdateTensor> tensors,
                                       const UpdateFactors& factors);

}  // namespace flashshard::cuda
