// Gathers rows from their owners to every rank, bucket by bucket and packed: while one bucket
// travels, the next is worked on.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <utility>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "optim/buckets.h"
#include "optim/reduction.h"

namespace flashshard {

class BucketGather {
 public:
  /// Where rows of a tensor stand on this rank, all of one type.
  using RowsOf = std::function<Tensor(int tensor, RowRange rows)>;

  /// `what` is gathered: "updated weights". The staging's `packed` must hold a bucket of that type.
  BucketGather(Communicator& communicator, Backend& backend, const BucketPlan& plan,
               const StagingPairs& staging, RowsOf rows, DType dtype, std::string what)
      : communicator_(communicator),
        backend_(backend),
        plan_(plan),
        staging_(staging),
        rows_(std::move(rows)),
        dtype_(dtype),
        what_(std::move(what)) {}

  using Work = std::function<void(const Bucket&)>;
  /// Every bucket in forward order: `before` its rows are sent, `after` all ranks' rows are there.
  /// Collective.
  void run(const Work& before, const Work& after);

  /// Sends the bucket's own rows; the transfer before the last one is finished first. Collective.
  void start(const Bucket& bucket);
  /// Finishes what is in flight.
  void finish();
  /// Called when all ranks' rows of a bucket are there.
  void set_after(Work after) { after_ = std::move(after); }
  /// Milliseconds that the gathers have taken since the last call of take_ms(), without `after`.
  double ms() const { return gather_ms_; }
  double take_ms() { return std::exchange(gather_ms_, 0); }

 private:
  void start_transfer(size_t transfer, const Bucket& bucket);
  void finish_transfer(size_t transfer);
  void unpack(const Bucket& bucket, const std::byte* packed);

  Communicator& communicator_;
  Backend& backend_;
  const BucketPlan& plan_;
  StagingPairs staging_;
  RowsOf rows_;
  DType dtype_;
  std::string what_;
  std::array<Pending, kTransfersInFlight> pending_;
  std::array<const Bucket*, kTransfersInFlight> in_flight_ = {};
  size_t next_ = 0;  // the transfer that is used next, the older of those in flight
  Work after_;
  double gather_ms_ = 0;
};

}  // namespace flashshard
