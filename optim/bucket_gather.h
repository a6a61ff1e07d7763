// Gathers rows to every rank of a communicator, bucket by bucket and packed: while one bucket
// travels, the next is worked on.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "optim/buckets.h"
#include "optim/reduction.h"

namespace flashshard {

class BucketGather {
 public:
  /// Where rows of a tensor stand on this rank, all of one type.
  using RowsOf = std::function<Tensor(int tensor, RowRange rows)>;

  struct Content {
    std::vector<ShardRange> shards;  // shards[i]: whose rows the communicator's rank i brings
    RowsOf rows;
    DType dtype = DType::kBF16;
    std::string name;  // "updated weights"
  };

  /// The staging's `packed` must hold a bucket's rows of all these shards.
  BucketGather(Communicator& communicator, Backend& backend, const BucketPlan& plan,
               const StagingPairs& staging, Content content)
      : communicator_(communicator),
        backend_(backend),
        plan_(plan),
        staging_(staging),
        content_(std::move(content)) {}

  /// Every bucket in forward order. Collective.
  void run();

  /// Starts on every bucket in forward order. wait_for() finishes those of layers up to `layer` and
  /// starts as many others. Both collective, in the same order on every rank.
  void start_all();
  void wait_for(int layer);

  /// Sends the bucket's own rows; the transfer before the last one is finished first. Collective.
  void start(const Bucket& bucket);
  /// Finishes the bucket's transfer and those before it.
  void wait_for(const Bucket& bucket);
  /// Lets the transport move bytes, without waiting.
  void progress();
  /// Finishes what is in flight and what start_all() has left.
  void finish();
  /// Milliseconds that the gathers have taken since the last call of take_ms().
  double ms() const { return gather_ms_; }
  double take_ms() { return std::exchange(gather_ms_, 0); }

 private:
  void start_transfer(size_t transfer, const Bucket& bucket);
  void finish_transfer(size_t transfer);
  void start_queued();
  template <class Work>
  void for_rows_of(int rank, const Bucket& bucket, const Work& work);
  void unpack(const Bucket& bucket, const std::byte* packed);

  Communicator& communicator_;
  Backend& backend_;
  const BucketPlan& plan_;
  StagingPairs staging_;
  Content content_;
  std::array<Pending, kTransfersInFlight> pending_;
  std::array<const Bucket*, kTransfersInFlight> in_flight_ = {};
  size_t next_ = 0;    // the transfer that is used next, the older of those in flight
  size_t queued_ = 0;  // buckets of start_all() that are not started, the last ones
  double gather_ms_ = 0;
};

}  // namespace flashshard
