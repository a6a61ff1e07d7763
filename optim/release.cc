// ShardedOptimizer with release: a bucket is updated inside backward, as soon as it is reduced.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "kernels/numerics/exact_sum.h"
#include "optim/sharded_optimizer.h"
#include "optim/stopwatch.h"

namespace flashshard {

double GradientSums::mean_norm(int64_t all_tokens) const {
  return std::sqrt(numerics::exact_sum_value(limbs)) / static_cast<double>(all_tokens);
}

void ShardedOptimizer::begin_release(const Round& round) {
  GradientSums own;
  own.tokens = round.tokens;
  if (round.first || !sharding_.goes_into_moments()) {
    release_ = {};
    release_.changed.resize(plan_.buckets().size());
  }
  release_.learning_rate = round.learning_rate;
  const int64_t before = std::exchange(release_.tokens, agree(own).tokens);
  release_.round_tokens = release_.tokens - before;
}

// Every rank comes to the same decision about the bucket before any of its states changes.
void ShardedOptimizer::release(const Bucket& bucket) {
  GradientSums own;
  add_own(bucket, own);
  const GradientSums all = agree(own);
  sums_.nonfinite_groups += all.nonfinite_groups;
  if (all.nonfinite_groups > 0) {
    ++release_.outcome.skipped_buckets;
  } else {
    std::ranges::transform(sums_.limbs, all.limbs, sums_.limbs.begin(), std::plus<>());
  }
  if (sharding_.goes_into_moments()) {
    release_round(bucket, all);
    return;
  }
  if (all.nonfinite_groups > 0 || release_.tokens == 0) return;
  const double clip = clip_coefficient(all.mean_norm(release_.tokens));
  StepOutcome& outcome = release_.outcome;
  outcome.clip_coefficient = std::min(outcome.clip_coefficient, clip);
  apply_released(bucket, factors(release_.learning_rate,
                                 clip / static_cast<double>(release_.tokens), updates_ + 1));
  release_.applied = true;
}

// The step's token count is not known before its last round: a round's gradient is divided by its
// own and weighs as much as its part of the micro-batches. A round that counts for nothing leaves
// the moments as they are; as the step's last it is one of zeros, if they hold an earlier one.
void ShardedOptimizer::release_round(const Bucket& bucket, const GradientSums& all) {
  const auto index = static_cast<size_t>(&bucket - plan_.buckets().data());
  const bool counts = all.nonfinite_groups == 0 && release_.round_tokens > 0;
  if (!counts) {
    if (!round_.last || !release_.changed[index]) return;
    for (const BucketSegment& segment : bucket.segments) {
      const Tensor own =
          gradients_.reduced_rows(segment.tensor, plan_.rows(segment, placement_.own()));
      backend_.zero(own.data, own.bytes());
    }
  }
  StepFactors step =
      factors(release_.learning_rate,
              counts ? round_.share / static_cast<double>(release_.round_tokens) : 0, updates_ + 1);
  step.first = !release_.changed[index];
  step.last = round_.last;
  if (!step.last) step.health = nullptr;  // no weight was to change
  release_.changed[index] = true;
  apply_released(bucket, step);
  release_.applied = release_.applied || step.last;
}

void ShardedOptimizer::apply_released(const Bucket& bucket, const StepFactors& factors) {
  if (gradient_gather_) {
    gradient_gather_->start(bucket);
    gradient_gather_->finish();  // the reduced gradient lives for this bucket alone
  }
  hold(bucket);
  const Stopwatch watch;
  rule_.apply(slices(bucket), factors, {});
  release_.outcome.update_ms += watch.milliseconds();
  if (weight_gather_ && factors.last) weight_gather_->start(bucket);
}

StepOutcome ShardedOptimizer::finish_release() {
  if (weight_gather_) weight_gather_->finish();
  if (gathered_) gathered_->invalidate();
  StepOutcome outcome = release_.outcome;
  outcome.tokens = release_.tokens;
  outcome.nonfinite_groups = sums_.nonfinite_groups;
  outcome.applied = release_.applied;
  if (!outcome.applied) {
    outcome.gradient_norm = outcome.tokens == 0 ? 0 : std::numeric_limits<double>::infinity();
    return outcome;
  }
  outcome.gradient_norm = sums_.mean_norm(outcome.tokens);
  previous_norm_ = outcome.gradient_norm;
  ++updates_;
  return outcome;
}

}  // namespace flashshard
