#include "optim/sharded_optimizer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "optim/stopwatch.h"

namespace flashshard {
namespace {

/// Elements that initialize() holds in fp32 on the host at once: 16 MiB.
constexpr int64_t kInitializedElements = int64_t{1} << 22;

/// Milliseconds of `work` but for those that `others()` counts meanwhile.
template <class Work, class Others>
double ms_of(const Work& work, const Others& others) {
  const Stopwatch watch;
  const double before = others();
  work();
  return watch.milliseconds() - (others() - before);
}

}  // namespace

ShardedOptimizer::ShardedOptimizer(ShardGroups& groups, MemoryLedger& ledger, ShardedState& state,
                                   Gradients& gradients, UpdateRule& rule,
                                   const ShardedOptimizerOptions& options)
    : communicator_(groups.all()),
      backend_(ledger.backend()),
      state_(state),
      gradients_(gradients),
      rule_(rule),
      options_(options),
      sharding_(gradients.format().sharding),
      plan_(gradients.plan()),
      placement_(gradients.placement()),
      groups_(groups),
      staging_(
          allocate_staging(ledger, plan_.staging_bytes(placement_, options.wire, options.order))),
      reducer_(communicator_, backend_, gradients, {options.wire, options.order}, staging_,
               [this](const Bucket& bucket) { reduced(bucket); }) {
  make_gathers(ledger);
}

void ShardedOptimizer::make_gathers(MemoryLedger& ledger) {
  const GradientFormat& format = gradients_.format();
  if (groups_.replicas() != nullptr) {
    const int64_t bytes = gradient_gather_bytes(plan_, placement_, format);
    const auto rows = [this](int tensor, RowRange range) {
      return gradients_.reduced_rows(tensor, range);
    };
    gradient_gather_.emplace(*groups_.replicas(), backend_, plan_,
                             allocate_staging(ledger, {bytes, 0}),
                             BucketGather::Content{placement_.owned_by_replicas(), rows,
                                                   gradients_.reduced_dtype(), "gradients"});
  }
  if (groups_.group() == nullptr) return;
  if (sharding_.divides_weights()) {
    gathered_.emplace(*groups_.group(), ledger, state_);
    return;
  }
  // Beside reductions it cannot use their buffers.
  const int64_t bytes = weight_gather_bytes(plan_, placement_, format);
  weight_gather_.emplace(gather_of_weights(
      *groups_.group(), placement_.held_by_group(),
      sharding_.gathers_weights_in_backward() ? allocate_staging(ledger, {bytes, 0}) : staging_));
}

BucketGather ShardedOptimizer::gather_of_weights(Communicator& communicator,
                                                 std::vector<ShardRange> shards,
                                                 const StagingPairs& staging) const {
  const auto rows = [this](int tensor, RowRange range) {
    return state_.weight_rows(tensor, range);
  };
  return {communicator,
          backend_,
          plan_,
          staging,
          {std::move(shards), rows, state_.weight_dtype(), "weights"}};
}

std::vector<Tensor> ShardedOptimizer::model_weights() const {
  if (gathered_) return gathered_->tensors();
  std::vector<Tensor> weights;
  for (int t = 0; t < state_.layout().tensors(); ++t) weights.push_back(state_.weight(t));
  return weights;
}

void ShardedOptimizer::begin_pass(bool backward_follows) {
  if (gathered_) gathered_->begin_pass(backward_follows);
}

void ShardedOptimizer::before_layer(int layer) {
  reducer_.progress();
  if (gradient_gather_) gradient_gather_->progress();
  if (weight_gather_) weight_gather_->wait_for(layer);
  if (gathered_) gathered_->before_layer(layer);
}

void ShardedOptimizer::finish_gathers() {
  if (weight_gather_) weight_gather_->finish();
}

double ShardedOptimizer::released_ms() const {
  return release_.outcome.update_ms + held_ms_ + (gradient_gather_ ? gradient_gather_->ms() : 0) +
         (weight_gather_ ? weight_gather_->ms() : 0);
}

double ShardedOptimizer::take_gather_ms() {
  return (gradient_gather_ ? gradient_gather_->take_ms() : 0) +
         (weight_gather_ ? weight_gather_->take_ms() : 0) +
         (gathered_ ? gathered_->take_wait_ms() : 0);
}

void ShardedOptimizer::begin_round(const Round& round) {
  if (sharding_.goes_into_moments() && !round.first) {
    reduce_ms_ += ms_of([&] { reducer_.finish(); }, [&] { return released_ms(); });
  }
  round_ = round;
  next_bucket_ = 0;
  if (round.first) {
    reduce_ms_ = 0;
    sums_ = {};
    take_gather_ms();  // what a validation waited for is no part of the step
  }
  if (sharding_.release && (round.last || sharding_.goes_into_moments())) begin_release(round);
}

void ShardedOptimizer::layer_ready(int layer) {
  // Where they share the reductions' staging; there are none left once every layer was announced.
  if (!sharding_.gathers_weights_in_backward()) finish_gathers();
  const auto& buckets = plan_.buckets();
  Round round = round_;
  if (sharding_.goes_into_moments()) round.first = round.last = true;  // sums of their own
  const auto start = [&] {
    while (next_bucket_ < buckets.size() && buckets[next_bucket_].layer >= layer) {
      reducer_.start(buckets[next_bucket_++], round);
    }
  };
  reduce_ms_ += ms_of(start, [&] { return released_ms(); });
}

void ShardedOptimizer::reduced(const Bucket& bucket) {
  if (sharding_.release) {
    release(bucket);
  } else {
    add_own(bucket, sums_);
    // Not out of an accumulator that is decoded for one bucket at a time.
    const bool stays = gradients_.reduced_place() != ReducedPlace::kPacked;
    if (gradient_gather_ && stays) gradient_gather_->start(bucket);
  }
}

void ShardedOptimizer::add_own(const Bucket& bucket, GradientSums& sums) {
  std::vector<Tensor> own;
  for (const BucketSegment& segment : bucket.segments) {
    const RowRange rows = plan_.rows(segment, placement_.own());
    if (rows.count > 0) own.push_back(gradients_.reduced_rows(segment.tensor, rows));
  }
  backend_.exact_norm({own, sums.limbs, &sums.nonfinite_groups});
}

// One reduction of integers: the sum is exact, so every rank draws the same conclusion from the
// same bits.
GradientSums ShardedOptimizer::agree(const GradientSums& own) {
  std::array<int64_t, 12> agreed = {};
  std::copy(own.limbs.begin(), own.limbs.end(), agreed.begin());
  agreed[10] = own.nonfinite_groups;
  agreed[11] = own.tokens;
  const BackendRange range(backend_, "reduction of the norm");
  communicator_.all_reduce(agreed, ReduceOp::kSum)
      .wait("waiting for the reduction of the gradient norm");
  GradientSums all;
  std::copy_n(agreed.begin(), 10, all.limbs.begin());
  all.nonfinite_groups = agreed[10];
  all.tokens = agreed[11];
  return all;
}

double ShardedOptimizer::clip_coefficient(double norm) const {
  if (sharding_.clip == ClipMode::kPrevious) norm = previous_norm_;
  return options_.clip_norm > 0 && norm > options_.clip_norm ? options_.clip_norm / norm : 1;
}

StepOutcome ShardedOptimizer::step(double learning_rate, int64_t local_tokens) {
  if (next_bucket_ != plan_.buckets().size() || !round_.last) {
    throw Error(ExitCode::kInternal, "optimizer step before every layer was reduced");
  }
  reduce_ms_ += ms_of([&] { reducer_.finish(); }, [&] { return released_ms(); });
  sums_.tokens = local_tokens;
  StepOutcome outcome = sharding_.release ? finish_release() : step_at_once(learning_rate);
  if (gradient_gather_) gradient_gather_->finish();  // of a skipped step
  health_ = std::exchange(counting_, {});
  outcome.reduce_ms = reduce_ms_;
  outcome.held_ms = std::exchange(held_ms_, 0);
  outcome.gather_ms = take_gather_ms();
  return outcome;
}

// Ranks that hold the same states make the same updates: one of them counts.
StepFactors ShardedOptimizer::factors(double learning_rate, double gradient_factor, uint64_t t) {
  const bool counts = placement_.is_first_replica();
  return {learning_rate, gradient_factor, t, counts ? &rejected_groups_ : nullptr,
          counts ? &counting_ : nullptr};
}

StepOutcome ShardedOptimizer::step_at_once(double learning_rate) {
  const GradientSums sums = agree(sums_);
  StepOutcome outcome;
  outcome.nonfinite_groups = sums.nonfinite_groups;
  outcome.tokens = sums.tokens;
  if (outcome.tokens == 0 || outcome.nonfinite_groups > 0) {
    outcome.gradient_norm = outcome.tokens == 0 ? 0 : std::numeric_limits<double>::infinity();
    return outcome;
  }
  outcome.gradient_norm = sums.mean_norm(sums.tokens);
  outcome.clip_coefficient = clip_coefficient(outcome.gradient_norm);
  previous_norm_ = outcome.gradient_norm;
  const double factor = outcome.clip_coefficient / static_cast<double>(outcome.tokens);
  update(factors(learning_rate, factor, ++updates_), &outcome);
  outcome.applied = true;
  return outcome;
}

/// Of every row whose states this rank holds.
std::vector<ShardSlice> ShardedOptimizer::slices(const Bucket& bucket) const {
  const ShardRange shards = placement_.states();
  std::vector<ShardSlice> slices;
  for (const BucketSegment& segment : bucket.segments) {
    for (int s = shards.first; s < shards.end(); ++s) {
      const RowRange rows = plan_.rows(segment, s);
      if (rows.count == 0) continue;
      slices.push_back(
          state_.slice(segment.tensor, rows, gradients_.reduced_rows(segment.tensor, rows)));
    }
  }
  return slices;
}

void ShardedOptimizer::hold(const Bucket& bucket) {
  if (!before_update_) return;
  const Stopwatch watch;
  before_update_(bucket);
  held_ms_ += watch.milliseconds();
}

void ShardedOptimizer::update(const StepFactors& factors, StepOutcome* outcome) {
  if (gathered_) gathered_->invalidate();
  // All buckets first: what a gather does not hide behind updates, the next forward hides.
  for (const Bucket& bucket : plan_.buckets()) {
    const Stopwatch decoding;
    gradients_.load(bucket);
    outcome->update_ms += decoding.milliseconds();
    gather_gradients(bucket);
    hold(bucket);
    const Stopwatch watch;
    rule_.apply(slices(bucket), factors, {});
    outcome->update_ms += watch.milliseconds();
  }
  if (weight_gather_) weight_gather_->start_all();
}

/// The bucket's reduced gradient is where the update reads it.
void ShardedOptimizer::gather_gradients(const Bucket& bucket) {
  if (!gradient_gather_) return;
  if (gradients_.reduced_place() == ReducedPlace::kPacked) gradient_gather_->start(bucket);
  gradient_gather_->wait_for(bucket);
}

void ShardedOptimizer::share_state() {
  finish_gathers();
  if (gathered_) gathered_->invalidate();
  if (groups_.replicas() != nullptr) share_with_replicas();
  if (weight_gather_) weight_gather_->run();
}

void ShardedOptimizer::share_with_replicas() {
  const auto owned = placement_.owned_by_replicas();
  gather_of_weights(*groups_.replicas(), owned, staging_).run();
  backend_.synchronize();
  const ShardLayout& layout = state_.layout();
  for (int t = 0; t < layout.tensors(); ++t) {
    for (size_t s = 0; s < state_.state_specs(t).size(); ++s) {
      const auto held = state_.state_bytes(t, s, layout.rows_of(t, placement_.states()));
      std::vector<ByteRange> ranges;
      size_t offset = 0;
      for (const ShardRange& shard : owned) {
        const size_t size = state_.state_bytes(t, s, layout.rows_of(t, shard)).size();
        ranges.push_back({offset, size});
        offset += size;
      }
      groups_.replicas()->all_gather(held, ranges).wait("waiting for the states of other ranks");
    }
  }
}

void ShardedOptimizer::initialize(const InitialValues& values) {
  std::vector<float> host;
  for (int t = 0; t < state_.layout().tensors(); ++t) {
    const RowRange own = state_.layout().rows_of(t, placement_.own());
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
  share_state();
}

}  // namespace flashshard
