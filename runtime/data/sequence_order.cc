#include "runtime/data/sequence_order.h"

#include <algorithm>

#include "runtime/data/index_permutation.h"

namespace flashshard::data {

SequenceOrder::SequenceOrder(const Options& options)
    : options_(options),
      windows_(std::max<int64_t>(1, options.token_count / options.sequence_length - 1)) {}

int64_t SequenceOrder::position(int64_t sequence) const {
  const PermutationKey key = {.seed = options_.seed,
                              .epoch = static_cast<uint64_t>(sequence / windows_)};
  const int64_t slack = options_.token_count - 1 - windows_ * options_.sequence_length;
  const auto offset = static_cast<int64_t>(random_up_to(static_cast<uint64_t>(slack), key));
  const IndexPermutation order(static_cast<uint64_t>(windows_), key);
  const auto window = static_cast<int64_t>(order(static_cast<uint64_t>(sequence % windows_)));
  return offset + window * options_.sequence_length;
}

}  // namespace flashshard::data
