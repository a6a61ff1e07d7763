// The inner loops of the codecs and updates, one table for each instruction set. All tables give
// the same bits.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/backend.h"

namespace flashshard::cpu {

/// Ranges are of elements, begin a multiple of the group of 32; so is end, or it is the end of the
/// tensor.
struct UpdateLoops {
  std::string_view name;
  void (*fold)(const Fold& call, int64_t begin, int64_t end);
  /// Adds to ten limbs and returns the groups left out for an element of 2^60 or more.
  int64_t (*exact_norm)(const Tensor& tensor, int64_t begin, int64_t end,
                        std::span<int64_t, 10> limbs);
  /// These three return the groups left as they were for a value outside the format's domain.
  int64_t (*encode_master)(const EncodeMaster& call, int64_t begin, int64_t end);
  int64_t (*update)(const UpdateTensor& tensor, const UpdateFactors& factors, int64_t begin,
                    int64_t end);
  int64_t (*encode_moment)(const EncodeMoment& call, int64_t begin, int64_t end);
  void (*decode_master)(const DecodeMaster& call, int64_t begin, int64_t end);
  void (*decode_moment)(const DecodeMoment& call, int64_t begin, int64_t end);
};

const UpdateLoops& scalar_update_loops();
/// Every table that this processor can run, scalar first, fastest last.
std::vector<const UpdateLoops*> available_update_loops();
/// The fastest of them.
const UpdateLoops& update_loops();

}  // namespace flashshard::cpu
