#include "optim/reduction.h"

#include <fmt/format.h>

#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace flashshard {
namespace {

std::string wait_name(const Bucket& bucket) {
  return fmt::format("waiting for the reduction of the gradients of layer {}", bucket.layer);
}

}  // namespace

StagingPairs allocate_staging(MemoryLedger& ledger, const BucketPlan::StagingBytes& bytes) {
  const auto allocate = [&](int64_t size) -> std::span<std::byte> {
    const auto count = static_cast<size_t>(size);
    return {static_cast<std::byte*>(ledger.allocate(MemoryClass::kBuckets, count)), count};
  };
  StagingPairs pairs;
  for (Staging& pair : pairs) pair = {allocate(bytes.packed), allocate(bytes.received)};
  return pairs;
}

BucketReducer::BucketReducer(Communicator& communicator, Backend& backend, Gradients& gradients,
                             const ReductionFormat& format, const StagingPairs& staging,
                             std::function<void(const Bucket&)> reduced)
    : communicator_(communicator),
      backend_(backend),
      gradients_(gradients),
      plan_(gradients.plan()),
      format_(format),
      staging_(staging),
      reduced_(std::move(reduced)),
      transfers_{Transfer(communicator, backend), Transfer(communicator, backend)} {}

void BucketReducer::start(const Bucket& bucket, const Round& round) {
  if (communicator_.world_size() == 1) {
    fold_alone(bucket, round);
    if (round.last) announce(bucket);
    return;
  }
  finish_transfer(next_);
  start_transfer(next_, bucket, round);
  next_ = (next_ + 1) % transfers_.size();
  Transfer& older = transfers_[next_];
  if (older.bucket != nullptr) older.reduction.advance(wait_name(*older.bucket));
}

void BucketReducer::progress() {
  for (Transfer& transfer : transfers_) {
    if (transfer.bucket != nullptr) transfer.reduction.progress();
  }
}

void BucketReducer::finish() {
  for (size_t i = 0; i < transfers_.size(); ++i) {
    finish_transfer((next_ + i) % transfers_.size());  // the older first: sums have an order
  }
}

std::vector<Tensor> BucketReducer::own_rows(const Bucket& bucket) {
  gradients_.hold(bucket);
  std::vector<Tensor> own;
  for (const BucketSegment& segment : bucket.segments) {
    const RowRange rows = plan_.rows(segment, gradients_.placement().own());
    if (rows.count > 0) own.push_back(gradients_.reduced_rows(segment.tensor, rows));
  }
  return own;
}

// One rank's sum is its gradient, in the type that the update reads.
void BucketReducer::fold_alone(const Bucket& bucket, const Round& round) {
  if (gradients_.reduced_place() == ReducedPlace::kLocal) return;
  hold(bucket, round);
  for (const BucketSegment& segment : bucket.segments) {
    const RowRange rows = plan_.rows(segment, 0);
    if (rows.count == 0) continue;
    const Tensor from = gradients_.local_rows(segment.tensor, rows);
    const void* input = from.data;
    Fold call;
    call.out = gradients_.reduced_rows(segment.tensor, rows);
    call.inputs = {&input, 1};
    call.input_dtype = from.dtype;
    call.accumulate = !round.first;
    backend_.fold(call);
  }
  gradients_.store(bucket);
}

// The rows that rank p owns of every segment, one behind the other, for p = 0, 1, ...: rounded to
// the wire's type.
void BucketReducer::pack(const Bucket& bucket, std::byte* packed) {
  for (int r = 0; r < communicator_.world_size(); ++r) {
    for (const BucketSegment& segment : bucket.segments) {
      const RowRange rows = plan_.rows(segment, gradients_.placement().shard_of(r));
      const Tensor from = gradients_.local_rows(segment.tensor, rows);
      const Tensor to(packed, format_.wire, {from.rows(), from.cols()});
      if (from.dtype == to.dtype) {
        backend_.copy(to.data, from.data, from.bytes());
      } else if (from.elements() > 0) {
        const void* input = from.data;
        Fold rounding;  // a fold over one input only rounds
        rounding.out = to;
        rounding.inputs = {&input, 1};
        rounding.input_dtype = from.dtype;
        backend_.fold(rounding);
      }
      packed += static_cast<size_t>(from.elements()) * size_of(format_.wire);
    }
  }
  backend_.synchronize();
}

void BucketReducer::start_transfer(size_t index, const Bucket& bucket, const Round& round) {
  const BackendRange range(backend_, "reduction of gradients of layer", bucket.layer);
  const Staging& staging = staging_[index];
  if (communicator_.rank() < round.contributors) pack(bucket, staging.packed.data());
  const auto slices = plan_.ranges(bucket, gradients_.placement().owned_by_all(),
                                   static_cast<int64_t>(size_of(format_.wire)));
  std::vector<int> contributors(static_cast<size_t>(round.contributors));
  std::iota(contributors.begin(), contributors.end(), 0);
  const std::vector<Tensor> own = own_rows(bucket);
  FoldReduce call;
  call.packed = staging.packed.first(slices.back().offset + slices.back().size);
  call.slices = slices;
  call.staging = staging.received;
  call.wire_dtype = format_.wire;
  call.outputs = own;
  call.contributors = contributors;
  call.order = format_.order;
  call.accumulate = !round.first;
  Transfer& transfer = transfers_[index];
  transfer.reduction.start(call);
  transfer.bucket = &bucket;
  transfer.round = round;
}

void BucketReducer::finish_transfer(size_t index) {
  Transfer& transfer = transfers_[index];
  if (transfer.bucket == nullptr) return;
  const Bucket& bucket = *std::exchange(transfer.bucket, nullptr);
  {
    const BackendRange range(backend_, "sum of gradients of layer", bucket.layer);
    hold(bucket, transfer.round);  // a later one was started meanwhile
    transfer.reduction.finish(wait_name(bucket));
    gradients_.store(bucket);
  }
  if (transfer.round.last) announce(bucket);
}

/// The bucket's memory is ready to be folded into.
void BucketReducer::hold(const Bucket& bucket, const Round& round) {
  if (round.first) {
    gradients_.hold(bucket);
  } else {
    gradients_.load(bucket);
  }
}

/// What was stored is what the update will read.
void BucketReducer::announce(const Bucket& bucket) {
  gradients_.load(bucket);
  reduced_(bucket);
}

}  // namespace flashshard
