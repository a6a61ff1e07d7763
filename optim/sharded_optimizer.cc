#include "optim/sharded_optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "comm/fold_reduce.h"
#include "kernels/numerics/exact_sum.h"

namespace flashshard {
namespace {

/// Elements that initialize() holds in fp32 on the host at once: 16 MiB.
constexpr int64_t kInitializedElements = int64_t{1} << 22;

class Stopwatch {
 public:
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_)
        .count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

DType weight_dtype(const ShardedState& state) { return state.weight(0).dtype; }

}  // namespace

ShardedOptimizer::ShardedOptimizer(Communicator& communicator, MemoryLedger& ledger,
                                   ShardedState& state, std::span<const Tensor> gradients,
                                   UpdateRule& rule, const ShardedOptimizerOptions& options)
    : communicator_(communicator),
      backend_(ledger.backend()),
      state_(state),
      gradients_(gradients.begin(), gradients.end()),
      rule_(rule),
      options_(options),
      plan_(state.layout(), options.bucket_bytes, static_cast<int64_t>(size_of(options.wire))) {
  const auto bytes =
      plan_.staging_bytes(communicator_.rank(), options_.wire, weight_dtype(state), options_.order);
  for (size_t i = 0; i < staging_.size(); ++i) {
    const auto size = static_cast<size_t>(bytes[i]);
    staging_[i] = {static_cast<std::byte*>(ledger.allocate(MemoryClass::kBuckets, size)), size};
  }
}

void ShardedOptimizer::begin_step(int contributors) {
  contributors_ = contributors;
  next_bucket_ = 0;
  reduce_ms_ = 0;
  limbs_.fill(0);
  nonfinite_groups_ = 0;
}

void ShardedOptimizer::layer_ready(int layer) {
  const Stopwatch watch;
  const auto& buckets = plan_.buckets();
  while (next_bucket_ < buckets.size() && buckets[next_bucket_].layer >= layer) {
    reduce(buckets[next_bucket_++]);
  }
  reduce_ms_ += watch.milliseconds();
}

Tensor ShardedOptimizer::own_gradient(const BucketSegment& segment) const {
  const RowRange rows = plan_.rows(segment, communicator_.rank());
  return gradients_[static_cast<size_t>(segment.tensor)].row_range(rows.first, rows.count);
}

// Rank p's rows of every segment, one behind the other, for p = 0, 1, ...: rounded to the wire's
// type.
void ShardedOptimizer::pack_gradients(const Bucket& bucket, std::byte* packed) {
  for (int r = 0; r < communicator_.world_size(); ++r) {
    for (const BucketSegment& segment : bucket.segments) {
      const RowRange rows = plan_.rows(segment, r);
      const Tensor from =
          gradients_[static_cast<size_t>(segment.tensor)].row_range(rows.first, rows.count);
      const Tensor to(packed, options_.wire, {from.rows(), from.cols()});
      if (from.dtype == to.dtype) {
        backend_.copy(to.data, from.data, from.bytes());
      } else if (from.elements() > 0) {
        const void* input = from.data;
        backend_.fold({to, {&input, 1}, from.dtype});  // a fold over one input only rounds
      }
      packed += static_cast<size_t>(rows.count * plan_.layout().parameter(segment.tensor).cols) *
                size_of(options_.wire);
    }
  }
  backend_.synchronize();
}

void ShardedOptimizer::reduce(const Bucket& bucket) {
  const BackendRange range(backend_, "reduction of gradients of layer", bucket.layer);
  std::vector<Tensor> own;
  for (const BucketSegment& segment : bucket.segments) {
    if (plan_.rows(segment, communicator_.rank()).count > 0) own.push_back(own_gradient(segment));
  }
  if (communicator_.world_size() > 1) {
    if (communicator_.rank() < contributors_) pack_gradients(bucket, staging_[0].data());
    const auto slices = plan_.ranges(bucket, static_cast<int64_t>(size_of(options_.wire)));
    std::vector<int> contributors(static_cast<size_t>(contributors_));
    std::iota(contributors.begin(), contributors.end(), 0);
    FoldReduce call;
    call.packed = staging_[0].first(slices.back().offset + slices.back().size);
    call.slices = slices;
    call.staging = staging_[1];
    call.wire_dtype = options_.wire;
    call.outputs = own;
    call.contributors = contributors;
    call.order = options_.order;
    FoldReduction reduction(communicator_, backend_);
    reduction.start(call);
    reduction.finish(
        fmt::format("waiting for the reduction of the gradients of layer {}", bucket.layer));
  }
  backend_.exact_norm({own, limbs_, &nonfinite_groups_});
}

std::vector<ShardSlice> ShardedOptimizer::own_slices(const Bucket& bucket) const {
  std::vector<ShardSlice> slices;
  for (const BucketSegment& segment : bucket.segments) {
    const RowRange rows = plan_.rows(segment, communicator_.rank());
    if (rows.count == 0) continue;
    slices.push_back(state_.slice(segment.tensor, rows, own_gradient(segment)));
  }
  return slices;
}

StepOutcome ShardedOptimizer::step(double learning_rate, int64_t local_tokens) {
  if (next_bucket_ != plan_.buckets().size()) {
    throw Error(ExitCode::kInternal, "optimizer step before every layer was reduced");
  }
  // One reduction of integers: the sum is exact, so every rank draws the same conclusion from the
  // same bits.
  std::array<int64_t, 12> agreed = {};
  std::copy(limbs_.begin(), limbs_.end(), agreed.begin());
  agreed[10] = nonfinite_groups_;
  agreed[11] = local_tokens;
  {
    const BackendRange range(backend_, "reduction of the norm");
    communicator_.all_reduce(agreed, ReduceOp::kSum)
        .wait("waiting for the reduction of the gradient norm");
  }
  std::copy_n(agreed.begin(), 10, limbs_.begin());

  StepOutcome outcome;
  outcome.reduce_ms = reduce_ms_;
  outcome.nonfinite_groups = agreed[10];
  outcome.tokens = agreed[11];
  if (outcome.tokens == 0 || outcome.nonfinite_groups > 0) {
    outcome.gradient_norm = outcome.tokens == 0 ? 0 : std::numeric_limits<double>::infinity();
    return outcome;
  }
  const auto tokens = static_cast<double>(outcome.tokens);
  outcome.gradient_norm = std::sqrt(numerics::exact_sum_value(limbs_)) / tokens;
  if (options_.clip_norm > 0 && outcome.gradient_norm > options_.clip_norm) {
    outcome.clip_coefficient = options_.clip_norm / outcome.gradient_norm;
  }
  const StepFactors factors{learning_rate, outcome.clip_coefficient / tokens, ++updates_,
                            &rejected_groups_};
  update_and_gather([&](const Bucket& bucket) { rule_.apply(own_slices(bucket), factors, {}); },
                    &outcome);
  outcome.applied = true;
  return outcome;
}

// Two staging buffers: while one bucket's rows travel, the next bucket is updated.
template <class Update>
void ShardedOptimizer::update_and_gather(const Update& update, StepOutcome* outcome) {
  const auto& buckets = plan_.buckets();
  std::array<Pending, 2> gathers;
  std::array<const Bucket*, 2> in_flight = {nullptr, nullptr};
  const auto finish = [&](size_t slot) {
    if (in_flight[slot] == nullptr) return;
    const Stopwatch watch;
    const BackendRange range(backend_, "gather of weights of layer", in_flight[slot]->layer);
    gathers[slot].wait("waiting for the gather of updated weights");
    finish_gather(*in_flight[slot], staging_[slot].data());
    in_flight[slot] = nullptr;
    outcome->gather_ms += watch.milliseconds();
  };
  // Forward order: the weights that the next forward reads first are there first.
  for (size_t i = 0; i < buckets.size(); ++i) {
    const Bucket& bucket = buckets[buckets.size() - 1 - i];
    const Stopwatch watch;
    update(bucket);
    outcome->update_ms += watch.milliseconds();
    if (communicator_.world_size() == 1) continue;
    finish(i % 2);
    const Stopwatch start;
    gathers[i % 2] = start_gather(bucket, staging_[i % 2].data());
    in_flight[i % 2] = &bucket;
    outcome->gather_ms += start.milliseconds();
  }
  for (size_t slot : {buckets.size() % 2, (buckets.size() + 1) % 2}) finish(slot);
}

Pending ShardedOptimizer::start_gather(const Bucket& bucket, std::byte* staging) {
  const auto ranges = plan_.ranges(bucket, static_cast<int64_t>(size_of(weight_dtype(state_))));
  const int rank = communicator_.rank();
  size_t offset = ranges[static_cast<size_t>(rank)].offset;
  for (const BucketSegment& segment : bucket.segments) {
    const RowRange rows = plan_.rows(segment, rank);
    const Tensor own = state_.weight(segment.tensor).row_range(rows.first, rows.count);
    backend_.copy(staging + offset, own.data, own.bytes());
    offset += own.bytes();
  }
  backend_.synchronize();
  return communicator_.all_gather({staging, ranges.back().offset + ranges.back().size}, ranges);
}

void ShardedOptimizer::finish_gather(const Bucket& bucket, const std::byte* staging) {
  for (int r = 0; r < communicator_.world_size(); ++r) {
    for (const BucketSegment& segment : bucket.segments) {
      const RowRange rows = plan_.rows(segment, r);
      const Tensor target = state_.weight(segment.tensor).row_range(rows.first, rows.count);
      if (r != communicator_.rank()) backend_.copy(target.data, staging, target.bytes());
      staging += target.bytes();
    }
  }
}

void ShardedOptimizer::gather_weights() {
  StepOutcome timings;
  update_and_gather([](const Bucket&) {}, &timings);
}

void ShardedOptimizer::initialize(const InitialValues& values) {
  std::vector<float> host;
  for (int t = 0; t < state_.layout().tensors(); ++t) {
    const RowRange own = state_.layout().rows_of(t, communicator_.rank());
    const int64_t unit = state_.layout().unit_rows(t);
    const int64_t cols = state_.layout().parameter(t).cols;
    // Whole units at a time: an embedding in fp32 would be host memory that no plan knows of.
    const int64_t piece = std::max<int64_t>(1, kInitializedElements / (unit * cols)) * unit;
    for (int64_t first = 0; first < own.count; first += piece) {
      const RowRange rows{own.first + first, std::min(piece, own.count - first)};
      const ShardSlice slice = state_.slice(t, rows, {});
      host.resize(static_cast<size_t>(slice.weight.elements()));
      values(t, rows, host);
      const WeightFormat format = state_.weight_format(t);
      void* correction = correction_bytes(format) > 0 ? slice.states.front() : nullptr;
      backend_.encode_master(
          {format, host.data(), slice.weight.data, correction, slice.weight.elements()});
      backend_.synchronize();  // `host` is filled again
    }
  }
  gather_weights();
}

}  // namespace flashshard
