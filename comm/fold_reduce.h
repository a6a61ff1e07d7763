// The reduction in a named order (docs/sharding.md): slices travel in the wire's dtype, the owner
// of a slice sums them in fp32.
//
// FLAT: a left fold over the contributing ranks in ascending order, ((g0 + g1) + g2) + ..., rounded
// once to the output's dtype. It starts at the first contributor, never at +0, and a rank without a
// contribution is skipped, not added as zero. The bits depend on the contributors alone, not on the
// transport.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace flashshard {

struct FoldReduce {
  std::span<const std::byte>
      packed;  // this rank's contribution: one slice for every rank; read only if it contributes
  std::span<const ByteRange>
      slices;  // slices[p]: rank p's slice inside `packed`; the same sizes on every rank
  std::span<std::byte>
      staging;  // the others' contributions to the own slice: at least staging_bytes(...)
  DType wire_dtype = DType::kBF16;  // of `packed` and `staging`: bf16 or fp32
  std::span<const Tensor>
      outputs;  // the own slice, cut into consecutive tensors (bf16 or fp32), written by finish()
  std::span<const int>
      contributors;  // ranks that take part, ascending, at least one; the same on every rank
};

/// Bytes of staging that a reduction needs on `rank`: one own slice for every contributor but the
/// rank itself.
size_t staging_bytes(std::span<const ByteRange> slices, std::span<const int> contributors,
                     int rank);

/// One reduction in flight at a time. Memory is read and written by the host's transport: `packed`
/// must be complete when start() is called (Backend::synchronize), and stays untouched until the
/// folds that finish() enqueues are done.
class FoldReduction {
 public:
  FoldReduction(Communicator& communicator, Backend& backend)
      : communicator_(communicator), backend_(backend) {}

  /// Sends and receives. Throws Error(kInternal) on arguments that do not fit together.
  void start(const FoldReduce& call);
  /// Waits for the slices, naming the wait `what`, and enqueues one fold per output on the backend.
  void finish(std::string_view what);

 private:
  Communicator& communicator_;
  Backend& backend_;
  Pending exchange_;
  DType wire_dtype_ = DType::kBF16;
  std::vector<Tensor> outputs_;
  std::vector<const std::byte*> inputs_;  // by contributor: its part of the own slice
  bool in_flight_ = false;
};

}  // namespace flashshard
