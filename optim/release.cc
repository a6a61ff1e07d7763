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
  const auto apply = [&](const Bucket& ready) {
    hold(ready);
    const Stopwatch watch;
    rule_.apply(slices(ready), factors, {});
    release_.outcome.update_ms += watch.milliseconds();
  };
  if (!sharding_.divides_states()) {
    gather_.set_after(apply);
    gather_.start(bucket);
    gather_.finish();  // the reduced gradient lives for this bucket alone
    return;
  }
  apply(bucket);
  if (!sharding_.divides_weights()) gather_.start(bucket);
}

StepOutcome ShardedOptimizer::finish_release() {
  gather_.finish();
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
