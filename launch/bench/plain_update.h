// The peer of `bench optimizer`: AdamW as one plain loop over each group of 32, the way a C++
// programmer writes it down from the formats' formulas, left to the compiler's vectoriser. The file
// is compiled once for every instruction set, as `-O3 -march=...` would compile a program of its
// own.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/numerics/update_args.h"

namespace flashshard::launch {

/// Elements [begin, end), whole groups, of a tensor with a bf16 gradient and values inside the
/// formats' domains, which are not checked.
using PlainUpdate = void (*)(const UpdateTensor& tensor, const UpdateFactors& factors,
                             int64_t begin, int64_t end);

/// What one set of compiler flags made of the loops.
struct PlainUpdates {
  std::string_view instruction_set;  // as cpu::UpdateLoops names it
  /// "plain_loop", or "hinted_loop": the same but for maxima of bit patterns instead of floats,
  /// without which the compiler finds them one element at a time.
  std::string_view name;
  PlainUpdate v2_stochastic, v2_nearest;  // 24-bit split master, companded state: the same bits
  PlainUpdate v1;    // 24-bit error correction, FlashOptim's state, evaluated as its authors do
  PlainUpdate fp32;  // 32-bit split master, fp32 state: the same bits
};

/// Every set that was built for this processor family; whether a set runs here is the caller's
/// question.
std::span<const PlainUpdates> plain_updates();

}  // namespace flashshard::launch
