#include "optim/shard_placement.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace flashshard {

ShardPlacement::ShardPlacement(const Sharding& sharding, int world_size, int rank)
    : world_size_(world_size),
      rank_(rank),
      group_(sharding.ranks_of_a_group(world_size)),
      divides_weights_(sharding.divides_weights()) {
  if (group_ < 1 || world_size % group_ != 0) {
    throw Error(ExitCode::kInternal,
                fmt::format("groups of {} do not divide {} ranks", group_, world_size),
                "shard placement");
  }
}

std::vector<ShardRange> ShardPlacement::owned_by_all() const {
  std::vector<ShardRange> owned;
  for (int r = 0; r < world_size_; ++r) owned.push_back({shard_of(r), 1});
  return owned;
}

std::vector<ShardRange> ShardPlacement::owned_by_replicas() const {
  std::vector<ShardRange> owned;
  for (int i = 0; i < replicas(); ++i) owned.push_back({states().first + i, 1});
  return owned;
}

std::vector<ShardRange> ShardPlacement::held_by_group() const {
  std::vector<ShardRange> held;
  for (int place = 0; place < group_; ++place) held.push_back({place * replicas(), replicas()});
  return held;
}

}  // namespace flashshard
