#include "runtime/data/index_permutation.h"

#include <array>
#include <bit>

#include "kernels/numerics/philox.h"

namespace flashshard::data {

namespace {

// Random numbers of the data pipeline carry this in the counter's last word, where initial weights
// carry the high half of a tensor number (0): under one seed the two never meet.
constexpr uint32_t kStream = 0x44415441;  // "DATA"
constexpr uint32_t kRounds = 8;
constexpr uint32_t kOffsetRound = kRounds;  // a counter that no Feistel round uses

std::array<uint32_t, 4> random_words(const PermutationKey& key, uint32_t round, uint32_t value) {
  // Epochs are below 2^56.
  return numerics::philox4x32(
      {value, static_cast<uint32_t>(key.epoch), static_cast<uint32_t>(key.epoch >> 32) << 8 | round,
       kStream},
      {static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32)});
}

}  // namespace

IndexPermutation::IndexPermutation(uint64_t size, const PermutationKey& key)
    : size_(size), key_(key) {
  const auto bits = static_cast<uint32_t>(std::bit_width(size - 1));
  half_bits_ = bits < 2 ? 1 : (bits + 1) / 2;
}

uint64_t IndexPermutation::operator()(uint64_t index) const {
  // The network permutes a power of four >= size; walking its cycle from inside the range comes
  // back inside.
  do {
    index = encrypt(index);
  } while (index >= size_);
  return index;
}

uint64_t IndexPermutation::encrypt(uint64_t value) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_;
  uint64_t right = value & mask;
  for (uint32_t round = 0; round < kRounds; ++round) {
    const uint64_t mixed =
        left ^ (random_words(key_, round, static_cast<uint32_t>(right))[0] & mask);
    left = right;
    right = mixed;
  }
  return left << half_bits_ | right;
}

uint64_t random_up_to(uint64_t most, const PermutationKey& key) {
  const std::array<uint32_t, 4> words = random_words(key, kOffsetRound, 0);
  const uint64_t number = uint64_t{words[1]} << 32 | words[0];
  return most == UINT64_MAX ? number : number % (most + 1);
}

}  // namespace flashshard::data
