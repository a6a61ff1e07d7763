// Reduces buckets of gradients while backward goes on: two are in flight at once, and the older is
// finished when its staging is needed or nothing else is left to do. Finishing folds the ranks'
// contributions to this rank's rows (comm/fold_reduce.h).
#pragma once

#include <array>
#include <functional>
#include <span>

#include "comm/communicator.h"
#include "comm/fold_reduce.h"
#include "kernels/backend.h"
#include "optim/buckets.h"
#include "optim/gradients.h"
#include "optim/memory.h"

namespace flashshard {

/// A reduction of every bucket: one a step, or with ReduceTime::kEach one for every micro-batch.
struct Round {
  int contributors = 1;  // ranks 0 .. contributors-1 hold gradients; others' are skipped, not added
  bool first = true;     // of the step: sums begin with it
  bool last = true;      // of the step: sums are final with it

  // Read with release, in rounds that update: what a bucket's update needs.
  double learning_rate = 0;
  int64_t tokens = 0;  // of this rank in the step so far
  double share = 1;    // of the step's micro-batches
};

/// The buffers of one transfer (BucketPlan::staging_bytes).
struct Staging {
  std::span<std::byte> packed, received;
};
constexpr size_t kTransfersInFlight = 2;
using StagingPairs = std::array<Staging, kTransfersInFlight>;

StagingPairs allocate_staging(MemoryLedger& ledger, const BucketPlan::StagingBytes& bytes);

/// How gradients travel and are summed.
struct ReductionFormat {
  DType wire = DType::kBF16;
  ReductionOrder order = {};
};

class BucketReducer {
 public:
  /// `reduced(bucket)` is called when this rank's rows of a bucket hold the step's whole sum (with
  /// kMoments the round's). All referenced objects must outlive it.
  BucketReducer(Communicator& communicator, Backend& backend, Gradients& gradients,
                const ReductionFormat& format, const StagingPairs& staging,
                std::function<void(const Bucket&)> reduced);

  /// The bucket's gradients are final on this rank: packs and sends them; when start() returns they
  /// may be overwritten, unless they are reduced in place. Collective, in the same order on every
  /// rank.
  void start(const Bucket& bucket, const Round& round);
  /// Lets the transport move bytes, without waiting.
  void progress();
  /// Finishes what is in flight.
  void finish();

 private:
  struct Transfer {
    Transfer(Communicator& communicator, Backend& backend) : reduction(communicator, backend) {}
    FoldReduction reduction;
    const Bucket* bucket = nullptr;
    Round round;
  };

  std::vector<Tensor> own_rows(const Bucket& bucket);
  void pack(const Bucket& bucket, std::byte* packed);
  void fold_alone(const Bucket& bucket, const Round& round);
  void start_transfer(size_t index, const Bucket& bucket, const Round& round);
  void finish_transfer(size_t index);
  void hold(const Bucket& bucket, const Round& round);
  void announce(const Bucket& bucket);

  Communicator& communicator_;
  Backend& backend_;
  Gradients& gradients_;
  const BucketPlan& plan_;
  ReductionFormat format_;
  StagingPairs staging_;
  std::function<void(const Bucket&)> reduced_;
  std::array<Transfer, kTransfersInFlight> transfers_;
  size_t next_ = 0;  // the transfer that is used next, the older of those in flight
};

}  // namespace flashshard
