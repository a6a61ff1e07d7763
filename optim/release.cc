// ShardedOptimizer with release: a bucket is updated inside backward, as soon as it is reduced.
#include <algorithm>
#include <cmath>
#include <limits>

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
  release_ = {};
  release_.learning_rate = round.learning_rate;
  release_.tokens = agree(own).tokens;
}

// Every rank comes to the same decision about the bucket before any of its states changes.
void ShardedOptimizer::release(const Bucket& bucket) {
  GradientSums own;
  add_own(bucket, own);
  const GradientSums all = agree(own);
  sums_.nonfinite_groups += all.nonfinite_groups;
  if (all.nonfinite_groups > 0) {
    ++release_.outcome.skipped_buckets;
    return;
  }
  std::ranges::transform(sums_.limbs, all.limbs, sums_.limbs.begin(), std::plus<>());
  if (release_.tokens == 0) return;
  const double clip = clip_coefficient(all.mean_norm(release_.tokens));
  StepOutcome& outcome = release_.outcome;
  outcome.clip_coefficient = std::min(outcome.clip_coefficient, clip);
  apply_released(bucket, factors(release_.learning_rate,
                                 clip / static_cast<double>(release_.tokens), updates_ + 1));
  release_.applied = true;
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
  if (weight_gather_) weight_gather_->start(bucket);
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
