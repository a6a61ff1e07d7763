// The reduction in a named order (docs/sharding.md): slices travel in the wire's dtype, sums are
// formed in fp32 and rounded once to the output's dtype.
//
// A fold over contributions g0, g1, ... is ((g0 + g1) + g2) + ...: it starts at the first
// contributor, never at +0, and a rank without a contribution is skipped, not added as zero. With
// `accumulate` the outputs are the seed: ((out + g0) + g1) + ... The bits depend on the order, its
// group and the contributors, not on the transport.
//
// How bytes travel. FLAT: every contributor sends each owner its slice; the owner folds. TWO_LEVEL
// with partials P0, P1, ... of the groups: a contributor sends each member of its group the slices
// that this member relays; the relay folds them to fp32 and sends each owner its partial; the owner
// folds ((P0 + P1) + P2) + ..., with a seed (((out + P0) + P1) + ...). So one fp32 slice for each
// owner and each other contributing group crosses between groups, where FLAT sends one slice of the
// wire's dtype for each rank of the group; inside groups TWO_LEVEL sends at most a whole bucket and
// one fp32 slice from each rank.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "comm/reduction_order.h"
#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace flashshard {

struct FoldReduce {
  std::span<const std::byte>
      packed;  // this rank's contribution: one slice for every rank; read only if it contributes
  std::span<const ByteRange>
      slices;  // slices[p]: rank p's slice inside `packed`; the same sizes on every rank; with
               // TWO_LEVEL one right behind the other in rank order
  std::span<std::byte> staging;     // what the others send, and partials: at least
                                    // staging_bytes(...), aligned as fp32
  DType wire_dtype = DType::kBF16;  // of `packed`: bf16 or fp32
  std::span<const Tensor>
      outputs;  // the own slice, cut into consecutive tensors (bf16 or fp32), written by finish()
  std::span<const int>
      contributors;  // ranks that take part, ascending, at least one; the same on every rank
  ReductionOrder order = {};  // the same on every rank
  bool accumulate = false;    // the outputs, all fp32, are what the sum starts with
};

/// Bytes of staging that a reduction needs on `rank`. FLAT: one own slice for every contributor but
/// the rank itself. TWO_LEVEL: the relayed slices of every contributor of the group but the rank
/// itself, their fp32 partials, and one own fp32 slice for every group with a contributor.
size_t staging_bytes(std::span<const ByteRange> slices, std::span<const int> contributors, int rank,
                     const ReductionOrder& order, DType wire_dtype);

struct TwoLevelPlan;

/// One reduction in flight at a time. Memory is read and written by the host's transport: `packed`
/// must be complete when start() is called (Backend::synchronize), and stays untouched until the
/// folds that finish() enqueues are done. Several reductions may be in flight in several objects:
/// every rank makes the calls on them in the same order.
class FoldReduction {
 public:
  FoldReduction(Communicator& communicator, Backend& backend)
      : communicator_(communicator), backend_(backend) {}

  /// Sends and receives. Throws Error(kInternal) on arguments that do not fit together.
  void start(const FoldReduce& call);
  /// TWO_LEVEL: waits for the group's slices, folds them and sends the partials, so that these
  /// travel while the caller computes. Nothing to do in FLAT, or when called again.
  void advance(std::string_view what);
  /// Lets the transport move bytes, without waiting; true when what is in flight has come. Between
  /// pieces of work this hides a transfer behind them: MPI moves bytes in its own calls only.
  bool progress() { return exchange_.test(); }
  /// Waits for the slices, naming the wait `what`, and enqueues one fold per output on the backend.
  /// Calls advance() where the caller has not.
  void finish(std::string_view what);

 private:
  void start_flat(const FoldReduce& call);
  void start_two_level(const FoldReduce& call);
  void lay_out_partials(const FoldReduce& call, const TwoLevelPlan& plan);

  /// The second half of TWO_LEVEL, laid out by start().
  struct Relay {
    Tensor partials;                       // of the slices relayed here, one behind the other
    std::vector<const void*> inputs;       // what they are the fold of; none: no contributor here
    std::vector<ByteRange> send, receive;  // inside the staging buffer
    std::span<std::byte> staging;
  };

  Communicator& communicator_;
  Backend& backend_;
  Pending exchange_;
  DType wire_dtype_ = DType::kBF16;
  DType input_dtype_ = DType::kBF16;  // of inputs_
  std::vector<Tensor> outputs_;
  std::vector<const std::byte*> inputs_;  // of the last fold: its parts of the own slice
  Relay relay_;
  bool accumulate_ = false;
  bool relay_pending_ = false;
  bool in_flight_ = false;
};

}  // namespace flashshard
