// A keyed pseudo-random permutation of 0 ... n - 1 in constant memory: a balanced Feistel network
// (Luby and Rackoff, 1988) over the next power of four, with cycle walking (Black and Rogaway,
// 2002) back into range.
#pragma once

#include <cstdint>

namespace flashshard::data {

/// What a random number of the data pipeline is keyed by.
struct PermutationKey {
  uint64_t seed = 0;
  uint64_t epoch = 0;
};

class IndexPermutation {
 public:
  /// `size` >= 1.
  IndexPermutation(uint64_t size, const PermutationKey& key);

  /// The place of `index` (< size): a bijection on [0, size). Fewer than four runs of the network
  /// on average.
  uint64_t operator()(uint64_t index) const;

 private:
  uint64_t encrypt(uint64_t value) const;

  uint64_t size_;
  PermutationKey key_;
  uint32_t half_bits_ = 1;
};

/// A pseudo-random number from 0 to `most` (inclusive), uniform up to a bias below (most + 1) /
/// 2^64; independent of the permutation of the same key.
uint64_t random_up_to(uint64_t most, const PermutationKey& key);

}  // namespace flashshard::data
