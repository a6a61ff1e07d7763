#include "optim/bucket_gather.h"

#include "optim/stopwatch.h"

namespace flashshard {

void BucketGather::run(const Work& before, const Work& after) {
  set_after(after);
  // Forward order: the weights that the next forward reads first are there first.
  const auto& buckets = plan_.buckets();
  for (auto bucket = buckets.rbegin(); bucket != buckets.rend(); ++bucket) {
    before(*bucket);
    start(*bucket);
  }
  finish();
}

void BucketGather::start(const Bucket& bucket) {
  if (communicator_.world_size() == 1) {
    if (after_) after_(bucket);
    return;
  }
  finish_transfer(next_);
  start_transfer(next_, bucket);
  next_ = (next_ + 1) % kTransfersInFlight;
}

void BucketGather::finish() {
  for (size_t i = 0; i < kTransfersInFlight; ++i) {
    finish_transfer((next_ + i) % kTransfersInFlight);
  }
}

void BucketGather::start_transfer(size_t transfer, const Bucket& bucket) {
  const Stopwatch watch;
  const auto ranges = plan_.ranges(bucket, static_cast<int64_t>(size_of(dtype_)));
  const int rank = communicator_.rank();
  const std::span<std::byte> staging = staging_[transfer].packed;
  size_t offset = ranges[static_cast<size_t>(rank)].offset;
  for (const BucketSegment& segment : bucket.segments) {
    const Tensor own = rows_(segment.tensor, plan_.rows(segment, rank));
    backend_.copy(staging.data() + offset, own.data, own.bytes());
    offset += own.bytes();
  }
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
    const BackendRange range(backend_, "gather of " + what_ + " of layer", bucket.layer);
    pending_[transfer].wait("waiting for the gather of " + what_);
    unpack(bucket, staging_[transfer].packed.data());
  }
  gather_ms_ += watch.milliseconds();
  if (after_) after_(bucket);
}

void BucketGather::unpack(const Bucket& bucket, const std::byte* packed) {
  for (int r = 0; r < communicator_.world_size(); ++r) {
    for (const BucketSegment& segment : bucket.segments) {
      const Tensor target = rows_(segment.tensor, plan_.rows(segment, r));
      if (r != communicator_.rank()) backend_.copy(target.data, packed, target.bytes());
      packed += target.bytes();
    }
  }
}

}  // namespace flashshard
