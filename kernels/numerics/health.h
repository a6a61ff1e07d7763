// Which groups the health counters look at (docs/numerics.md): one of every 1024 of a whole tensor,
// another one at every update. The choice depends on (seed, tensor, t, group) alone, so sums over
// shards are the same at every sharding.
#pragma once

#include <cstdint>

#include "kernels/numerics/rounding.h"
#include "kernels/numerics/update_args.h"

namespace flashshard::numerics {

/// Consecutive groups of a whole tensor of which one is sampled; a tensor's last stretch may be
/// short and its sampled group missing.
constexpr int64_t kHealthStretch = 1024;

/// splitmix64 chained over (~seed, tensor, t): not the rounding's hash.
constexpr uint64_t health_key(const RoundingKey& key, uint64_t t) {
  return splitmix64(splitmix64(splitmix64(~key.seed) ^ key.tensor) ^ t);
}
/// Index, in the whole tensor, of the group that is sampled of stretch `stretch`.
constexpr int64_t sampled_group(uint64_t key, int64_t stretch) {
  const uint64_t hash = splitmix64(key ^ static_cast<uint64_t>(stretch));
  return stretch * kHealthStretch + static_cast<int64_t>(hash % uint64_t{kHealthStretch});
}

}  // namespace flashshard::numerics
