#include "runtime/data/sequence_sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "kernels/error.h"
#include "runtime/data/index_permutation.h"

namespace flashshard::data {

SequenceSampler::SequenceSampler(const TokenDataset& dataset, const Options& options)
    : dataset_(dataset), options_(options) {
  const int64_t length = options.sequence_length;
  if (length < 1) {
    throw Error(ExitCode::kUsage, fmt::format("sequence length {} is below 1", length),
                "train.sequence_length");
  }
  if (dataset.token_count() - 1 < length) {
    throw Error(ExitCode::kBadData,
                fmt::format("the {} text has {} tokens: too few for one sequence of {} and its "
                            "target",
                            split_name(dataset.split()), dataset.token_count(), length),
                dataset.folder().string(), "lower train.sequence_length or prepare more text");
  }
  windows_ = std::max<int64_t>(1, dataset.token_count() / length - 1);
}

int64_t SequenceSampler::position(int64_t sequence) const {
  const PermutationKey key = {.seed = options_.seed,
                              .epoch = static_cast<uint64_t>(sequence / windows_)};
  const int64_t slack = dataset_.token_count() - 1 - windows_ * options_.sequence_length;
  const auto offset = static_cast<int64_t>(random_up_to(static_cast<uint64_t>(slack), key));
  const IndexPermutation order(static_cast<uint64_t>(windows_), key);
  const auto window = static_cast<int64_t>(order(static_cast<uint64_t>(sequence % windows_)));
  return offset + window * options_.sequence_length;
}

void SequenceSampler::fill(int64_t first_sequence, int64_t count, std::span<int32_t> inputs,
                           std::span<int32_t> targets) const {
  const auto length = static_cast<size_t>(options_.sequence_length);
  if (first_sequence < 0 || count < 0 || inputs.size() != static_cast<size_t>(count) * length ||
      targets.size() != inputs.size()) {
    throw Error(ExitCode::kInternal, "buffers do not fit the sequences asked for",
                "SequenceSampler::fill");
  }
  std::vector<int32_t> window(length + 1);
  for (int64_t row = 0; row < count; ++row) {
    dataset_.read(position(first_sequence + row), window);
    const auto at = static_cast<std::ptrdiff_t>(static_cast<size_t>(row) * length);
    std::copy(window.begin(), window.end() - 1, inputs.begin() + at);
    std::copy(window.begin() + 1, window.end(), targets.begin() + at);
  }
}

}  // namespace flashshard::data
