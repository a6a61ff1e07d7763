#include "optim/legality.h"

#include <fmt/format.h>

#include <array>

#include "kernels/error.h"

namespace flashshard {
namespace {

constexpr std::array kRefusals = {
    Refusal{"`parallelism.stage` 2 or 3 with `parallelism.reduce` LAST and several micro-batches a "
            "rank",
            "whole sums on every rank would undo the division of the gradients",
            "set `parallelism.reduce` EACH, use stage 1, or let `train.global_batch` be "
            "`train.micro_batch` x ranks",
            [](const Sharding& s) { return s.divides_gradients() && s.local_sums; }},
    Refusal{"`parallelism.shard_group` at `parallelism.stage` 0",
            "there every rank holds everything: nothing is divided in a group",
            "leave `parallelism.shard_group` at 0, or set stage 1, 2 or 3",
            [](const Sharding& s) { return s.group > 0 && !s.divides_states(); }},
    Refusal{"`parallelism.shard_group` that does not divide the number of ranks",
            "every group holds the same, divided in the same way",
            "set `parallelism.shard_group` to a divisor of the number of ranks, or to 0",
            [](const Sharding& s) { return s.uneven_groups; }},
    Refusal{"`parallelism.accumulator` other than FP32 with `parallelism.reduce` LAST",
            "local sums are fp32: the model's backward adds to them element by element",
            "leave `parallelism.accumulator` at FP32, or set `parallelism.reduce` EACH",
            [](const Sharding& s) {
              return s.accumulator != AccumulatorFormat::kFP32 && !s.reduces_each();
            }},
    Refusal{"`parallelism.accumulator` MOMENTS with `optimizer.state` other than FP32, of "
            "`optimizer.group` too",
            "moments of 8 bits lose the small increments: after 64 micro-batches the variance ends "
            "at a seventh of its value",
            "set `optimizer.state` FP32, or another `parallelism.accumulator`",
            [](const Sharding& s) { return s.goes_into_moments() && !s.fp32_state; }},
    Refusal{"`parallelism.accumulator` MOMENTS with an `optimizer.rule` other than ADAMW, of "
            "`optimizer.group` too",
            "other rules have no two moments, or a decay in the gradient",
            "set `optimizer.rule` ADAMW, or another `parallelism.accumulator`",
            [](const Sharding& s) { return s.goes_into_moments() && !s.adamw; }},
    Refusal{"`parallelism.accumulator` MOMENTS with `optimizer.state_format` FLASHOPTIM_V1",
            "every round encodes the weights again, which changes some of their corrections",
            "leave `optimizer.state_format` at V2, or set another `parallelism.accumulator`",
            [](const Sharding& s) { return s.goes_into_moments() && s.v1_weights; }},
    Refusal{"`parallelism.accumulator` MOMENTS without `parallelism.release`",
            "a gradient goes into the moments as soon as it is reduced: that is release, round by "
            "round",
            "set `parallelism.release`",
            [](const Sharding& s) { return s.goes_into_moments() && !s.release; }},
    Refusal{"`parallelism.accumulator` MOMENTS with `optimizer.clip_norm` above 0",
            "the sum of a step's gradients stands nowhere: there is no norm of it to clip by",
            "set `optimizer.clip_norm` 0, or another `parallelism.accumulator`",
            [](const Sharding& s) { return s.goes_into_moments() && s.clips; }},
    Refusal{"`parallelism.reduced_gradient` FP32 with `parallelism.reduce` EACH",
            "the update reads sums in fp32 as they are, nothing more is rounded",
            "leave `parallelism.reduced_gradient` at BF16",
            [](const Sharding& s) { return s.reduces_each() && s.fp32_reduced_gradient; }},
    Refusal{"`parallelism.release` at `parallelism.stage` 1",
            "no gradient is kept whole: that is stage 2 with release", "set `parallelism.stage` 2",
            [](const Sharding& s) { return s.release && s.stage == 1; }},
    Refusal{"`parallelism.release` with `optimizer.clip_mode` GLOBAL and `optimizer.clip_norm` "
            "above 0",
            "weights change before the norm of the step's gradient is known",
            "set `optimizer.clip_mode` PREVIOUS or BUCKET, or `optimizer.clip_norm` 0",
            [](const Sharding& s) { return s.release && s.clips && s.clip == ClipMode::kGlobal; }},
    Refusal{"`parallelism.release` with `optimizer.skip_scope` STEP",
            "weights change before the step's last gradient is known to be finite",
            "set `optimizer.skip_scope` BUCKET",
            [](const Sharding& s) { return s.release && !s.skips_buckets; }},
    Refusal{"`parallelism.release` with `parallelism.reduce` LAST and several micro-batches a rank",
            "the local sums of whole gradients are the memory that release saves",
            "set `parallelism.reduce` EACH, or let `train.global_batch` be `train.micro_batch` x "
            "ranks",
            [](const Sharding& s) { return s.release && s.local_sums; }},
    Refusal{"`optimizer.skip_scope` BUCKET without `parallelism.release`",
            "every gradient is known before the first weight changes: a whole step can be skipped",
            "leave `optimizer.skip_scope` at STEP",
            [](const Sharding& s) { return s.skips_buckets && !s.release; }},
    Refusal{"`optimizer.clip_mode` BUCKET without `parallelism.release`",
            "the norm of the whole gradient is known and clips better",
            "leave `optimizer.clip_mode` at GLOBAL",
            [](const Sharding& s) { return s.clip == ClipMode::kBucket && !s.release; }},
    Refusal{"`parallelism.reproducible` with `parallelism.reduce` LAST",
            "local sums depend on which rank computes which micro-batches",
            "set `parallelism.reduce` EACH",
            [](const Sharding& s) { return s.reproducible && !s.reduces_each(); }},
    Refusal{"`parallelism.reproducible` with `parallelism.accumulator` other than FP32",
            "they round or square once a round, and rounds depend on the number of ranks",
            "leave `parallelism.accumulator` at FP32",
            [](const Sharding& s) {
              return s.reproducible && s.accumulator != AccumulatorFormat::kFP32;
            }},
    Refusal{"`parallelism.reproducible` with `parallelism.order` TWO_LEVEL",
            "groups of ranks decide the order of the sums", "leave `parallelism.order` at FLAT",
            [](const Sharding& s) { return s.reproducible && s.two_level; }},
    Refusal{"`parallelism.reproducible` with `parallelism.release`",
            "what stands in a bucket, and so what is clipped or skipped together, depends on the "
            "number of ranks",
            "leave `parallelism.release` at false",
            [](const Sharding& s) { return s.reproducible && s.release; }},
};

struct Column {
  std::string_view name;
  Sharding sharding;
};

/// The combinations that the first table judges at every stage.
constexpr std::array kColumns = {
    Column{"LAST, one micro-batch a rank", {}},
    Column{"LAST, several", {.local_sums = true}},
    Column{"LAST, one, reduced gradient FP32", {.fp32_reduced_gradient = true}},
    Column{"EACH", {.reduce = ReduceTime::kEach}},
    Column{"EACH, accumulator BF16 or BF16_SPLIT",
           {.reduce = ReduceTime::kEach, .accumulator = AccumulatorFormat::kSplit}},
    Column{"EACH, accumulator MOMENTS",
           {.reduce = ReduceTime::kEach,
            .accumulator = AccumulatorFormat::kMoments,
            .fp32_state = true,
            .release = true,
            .clips = false,
            .skips_buckets = true}},
    Column{"in groups", {.group = 2}},
    Column{"EACH, reproducible", {.reduce = ReduceTime::kEach, .reproducible = true}},
    Column{"release, LAST", {.release = true, .clip = ClipMode::kPrevious, .skips_buckets = true}},
    Column{"release, EACH",
           {.reduce = ReduceTime::kEach,
            .release = true,
            .clip = ClipMode::kPrevious,
            .skips_buckets = true}},
};

/// Settings' names are in backquotes for the documentation.
std::string plain(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c != '`') result += c;
  }
  return result;
}

}  // namespace

std::span<const Refusal> refusals() { return kRefusals; }

const Refusal* refusal_of(const Sharding& sharding) {
  for (const Refusal& refusal : kRefusals) {
    if (refusal.applies(sharding)) return &refusal;
  }
  return nullptr;
}

void require_legal(const Sharding& sharding, const std::string& where) {
  const Refusal* refusal = refusal_of(sharding);
  if (refusal == nullptr) return;
  throw Error(ExitCode::kUsage,
              plain(fmt::format("{} is refused: {}", refusal->combination, refusal->reason)), where,
              plain(refusal->remedy));
}

std::string legality_markdown() {
  std::string text = "| `parallelism.stage` |";
  for (const Column& column : kColumns) text += fmt::format(" {} |", column.name);
  text += "\n| --- |";
  for (size_t i = 0; i < kColumns.size(); ++i) text += " --- |";
  text += "\n";
  for (int stage = 0; stage <= 3; ++stage) {
    text += fmt::format("| {} |", stage);
    for (Column column : kColumns) {
      column.sharding.stage = stage;
      text += refusal_of(column.sharding) == nullptr ? " yes |" : " refused |";
    }
    text += "\n";
  }
  text += "\n| refused | because | instead |\n| --- | --- | --- |\n";
  for (const Refusal& refusal : kRefusals) {
    text += fmt::format("| {} | {} | {} |\n", refusal.combination, refusal.reason, refusal.remedy);
  }
  return text;
}

}  // namespace flashshard
