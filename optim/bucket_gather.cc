#include "optim/bucket_gather.h"

#include <algorithm>
#include <limits>

#include "optim/stopwatch.h"

namespace flashshard {

void BucketGather::run() {
  start_all();
  finish();
}

void BucketGather::start(const Bucket& bucket) {
  finish_transfer(next_);
  start_transfer(next_, bucket);
  next_ = (next_ + 1) % kTransfersInFlight;
}

void BucketGather::start_all() {
  finish();
  queued_ = plan_.buckets().size();
  for (size_t i = 0; i < kTransfersInFlight; ++i) start_queued();
}

void BucketGather::start_queued() {
  if (queued_ > 0) start(plan_.buckets()[--queued_]);  // stored in backward order
}

void BucketGather::wait_for(int layer) {
  for (size_t i = 0; i < kTransfersInFlight; ++i) {
    while (in_flight_[next_] != nullptr && in_flight_[next_]->layer <= layer) {
      finish_transfer(next_);
      if (queued_ == 0) break;
      start_queued();
    }
    if (in_flight_[next_] != nullptr) return;
    next_ = (next_ + 1) % kTransfersInFlight;
  }
}

void BucketGather::finish() { wait_for(std::numeric_limits<int>::max()); }

void BucketGather::wait_for(const Bucket& bucket) {
  for (size_t i = 0; i < kTransfersInFlight; ++i) {
    if (std::ranges::find(in_flight_, &bucket) == in_flight_.end()) return;
    finish_transfer((next_ + i) % kTransfersInFlight);  // the older first
  }
}

void BucketGather::progress() {
  for (Pending& pending : pending_) (void)pending.test();
}

/// `work(rows)` of what the communicator's rank brings of a bucket, in the order of packing.
template <class Work>
void BucketGather::for_rows_of(int rank, const Bucket& bucket, const Work& work) {
  const ShardRange shards = content_.shards[static_cast<size_t>(rank)];
  for (int s = shards.first; s < shards.end(); ++s) {
    for (const BucketSegment& segment : bucket.segments) {
      work(content_.rows(segment.tensor, plan_.rows(segment, s)));
    }
  }
}

void BucketGather::start_transfer(size_t transfer, const Bucket& bucket) {
  const Stopwatch watch;
  const auto ranges =
      plan_.ranges(bucket, content_.shards, static_cast<int64_t>(size_of(content_.dtype)));
  const int rank = communicator_.rank();
  const std::span<std::byte> staging = staging_[transfer].packed;
  size_t offset = ranges[static_cast<size_t>(rank)].offset;
  for_rows_of(rank, bucket, [&](const Tensor& own) {
    backend_.copy(staging.data() + offset, own.data, own.bytes());
    offset += own.bytes();
  });
  backend_.synchronize();
  pending_[transfer] =
      communicator_.all_gather(staging.first(ranges.back().offset + ranges.back().size), ranges);
  in_flight_[transfer] = &bucket;
  gather_ms_ += watch.milliseconds();
}

void BucketGather::finish_transfer(size_t transfer) {
  if (in_flight_[transfer] == nullptr) return;
  const Bucket& bucket = *std::exchange(in_flight_[transfer], nullptr);
  const Stopwatch watch;
  {
    const BackendRange range(backend_, "gather of " + content_.name + " of layer", bucket.layer);
    pending_[transfer].wait("waiting for the gather of " + content_.name);
    unpack(bucket, staging_[transfer].packed.data());
  }
  gather_ms_ += watch.milliseconds();
}

void BucketGather::unpack(const Bucket& bucket, const std::byte* packed) {
  for (int r = 0; r < communicator_.world_size(); ++r) {
    for_rows_of(r, bucket, [&](const Tensor& target) {
      if (r != communicator_.rank()) backend_.copy(target.data, packed, target.bytes());
      packed += target.bytes();
    });
  }
}

}  // namespace flashshard
