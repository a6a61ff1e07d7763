#include "runtime/data/micro_batch_schedule.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace flashshard::data {

MicroBatchSchedule::MicroBatchSchedule(const Options& options) : options_(options) {
  if (options.micro_batch < 1 || options.global_batch < 1 || options.first_sequence < 0 ||
      options.world_size < 1 || options.rank < 0 || options.rank >= options.world_size) {
    throw Error(
        ExitCode::kUsage,
        fmt::format("global batch {}, micro-batch {}, rank {} of {}, {} sequences consumed: "
                    "a number is out of range",
                    options.global_batch, options.micro_batch, options.rank, options.world_size,
                    options.first_sequence),
        "train.global_batch");
  }
  if (options.global_batch % options.micro_batch != 0) {
    throw Error(ExitCode::kUsage,
                fmt::format("global batch {} is no multiple of micro-batch {}",
                            options.global_batch, options.micro_batch),
                "train.global_batch", "choose a multiple of train.micro_batch");
  }
  const int64_t micro_batches = options.global_batch / options.micro_batch;
  if (micro_batches < options.world_size) {
    throw Error(ExitCode::kUsage,
                fmt::format("a step has {} micro-batches, too few for {} ranks", micro_batches,
                            options.world_size),
                "train.global_batch", "raise it, lower train.micro_batch, or use fewer ranks");
  }
  per_step_ = micro_batches / options.world_size +
              (options.rank < micro_batches % options.world_size ? 1 : 0);
}

int64_t MicroBatchSchedule::operator()(int64_t k) const {
  const int64_t step = k / per_step_;
  const int64_t in_step = k % per_step_ * options_.world_size + options_.rank;
  return options_.first_sequence + step * options_.global_batch + in_step * options_.micro_batch;
}

}  // namespace flashshard::data
