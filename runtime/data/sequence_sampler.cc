#include "runtime/data/sequence_sampler.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace flashshard::data {

namespace {

SequenceOrder checked_order(const TokenDataset& dataset, const SequenceSampler::Options& options) {
  const int64_t length = options.sequence_length;
  if (length < 1) {
    throw Error(ExitCode::kUsage, fmt::format("sequence length {} is below 1", length),
                "train.sequence_length");
  }
  if (dataset.token_count() <= length) {
    throw Error(ExitCode::kBadData,
                fmt::format("the {} text has {} tokens: too few for one sequence of {} and its "
                            "target",
                            split_name(dataset.split()), dataset.token_count(), length),
                dataset.folder().string(), "lower train.sequence_length or prepare more text");
  }
  return SequenceOrder(
      {.token_count = dataset.token_count(), .sequence_length = length, .seed = options.seed});
}

}  // namespace

SequenceSampler::SequenceSampler(const TokenDataset& dataset, const Options& options)
    : dataset_(dataset),
      sequence_length_(options.sequence_length),
      order_(checked_order(dataset, options)) {}

void SequenceSampler::fill(int64_t first_sequence, int64_t count,
                           const SequenceBuffers& buffers) const {
  const auto length = static_cast<size_t>(sequence_length_);
  if (first_sequence < 0 || count < 0 || !buffers.have_size(static_cast<size_t>(count) * length)) {
    throw Error(ExitCode::kInternal, "buffers do not fit the sequences asked for",
                "SequenceSampler::fill");
  }
  for (int64_t row = 0; row < count; ++row) {
    const size_t at = static_cast<size_t>(row) * length;
    dataset_.read_window(order_.position(first_sequence + row), buffers.part(at, length));
  }
}

}  // namespace flashshard::data
