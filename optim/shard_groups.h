// The communicators of hybrid sharding: a rank's group, which divides the shards, and its replicas,
// which hold the same ones.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "optim/shard_placement.h"

namespace flashshard {

class ShardGroups {
 public:
  /// Collective. `all` must outlive it.
  ShardGroups(Communicator& all, const ShardPlacement& placement) {
    if (placement.group() > 1 && placement.replicas() > 1) {
      own_group_ = all.split(all.rank() / placement.group());
      own_replicas_ = all.split(all.rank() % placement.group());
      group_ = own_group_.get();
      replicas_ = own_replicas_.get();
    } else if (all.world_size() > 1) {
      (placement.group() > 1 ? group_ : replicas_) = &all;
    }
  }

  /// By place in the group; null for a group of one.
  Communicator* group() { return group_; }
  /// By group; null where there is one.
  Communicator* replicas() { return replicas_; }

 private:
  std::unique_ptr<Communicator> own_group_, own_replicas_;
  Communicator* group_ = nullptr;
  Communicator* replicas_ = nullptr;
};

}  // namespace flashshard
