#include "runtime/config/sharding_options.h"

#include <fmt/format.h>

#include <algorithm>

#include "optim/legality.h"

namespace flashshard {
namespace {

ClipMode clip_mode(const proto::OptimizerSection& optimizer) {
  switch (optimizer.clip_mode()) {
    case proto::ClipMode::PREVIOUS:
      return ClipMode::kPrevious;
    case proto::ClipMode::BUCKET:
      return ClipMode::kBucket;
    case proto::ClipMode::GLOBAL:
      break;
  }
  return ClipMode::kGlobal;
}

AccumulatorFormat accumulator(const proto::ParallelismSection& parallelism) {
  switch (parallelism.accumulator()) {
    case proto::AccumulatorType::BF16_SPLIT:
      return AccumulatorFormat::kSplit;
    case proto::AccumulatorType::BF16:
      return AccumulatorFormat::kBF16;
    case proto::AccumulatorType::MOMENTS:
      return AccumulatorFormat::kMoments;
    case proto::AccumulatorType::FP32:
      break;
  }
  return AccumulatorFormat::kFP32;
}

/// Of every tensor.
bool has_fp32_state(const proto::OptimizerSection& optimizer) {
  return optimizer.state() == proto::OptimizerState::FP32 &&
         std::ranges::all_of(optimizer.group(), [](const proto::ParameterGroup& group) {
           return !group.has_state() || group.state() == proto::OptimizerState::FP32;
         });
}

bool is_adamw(const proto::OptimizerSection& optimizer) {
  return optimizer.rule() == proto::UpdateRuleKind::ADAMW &&
         std::ranges::all_of(optimizer.group(), [](const proto::ParameterGroup& group) {
           return !group.has_rule() || group.rule() == proto::UpdateRuleKind::ADAMW;
         });
}

}  // namespace

Sharding sharding_of(const proto::RunConfig& config) {
  const proto::ParallelismSection& p = config.parallelism();
  Sharding sharding;
  sharding.stage = p.stage();
  sharding.group = p.shard_group();
  sharding.reduce = p.reduce() == proto::ReduceTime::EACH ? ReduceTime::kEach : ReduceTime::kLast;
  sharding.fp32_reduced_gradient = p.reduced_gradient() == proto::ReducedGradientType::FP32;
  sharding.accumulator = accumulator(p);
  sharding.fp32_state = has_fp32_state(config.optimizer());
  sharding.adamw = is_adamw(config.optimizer());
  sharding.v1_weights =
      config.model().dtype() != proto::WeightType::FP32 &&
      config.optimizer().state_format() == proto::StateFormatVersion::FLASHOPTIM_V1;
  sharding.release = p.release();
  sharding.clips = config.optimizer().clip_norm() > 0;
  sharding.clip = clip_mode(config.optimizer());
  sharding.skips_buckets = config.optimizer().skip_scope() == proto::SkipScope::BUCKET;
  sharding.two_level = p.order() == proto::ReductionOrder::TWO_LEVEL;
  sharding.reproducible = p.reproducible();
  return sharding;
}

Sharding sharding_of(const proto::RunConfig& config, int world_size) {
  Sharding sharding = sharding_of(config);
  const int64_t micro_batches = config.train().global_batch() / config.train().micro_batch();
  sharding.local_sums = !sharding.reduces_each() && micro_batches > world_size;
  sharding.uneven_groups = sharding.group > 0 && world_size % sharding.group != 0;
  require_legal(sharding,
                fmt::format("{} micro-batches a step on {} ranks", micro_batches, world_size));
  return sharding;
}

}  // namespace flashshard
