// The communicators of hybrid sharding: a rank's group, which divides the shards, and its replicas,
// which hold the same ones. They are made before anything can fail on one rank alone: whoever waits
// in a split would never hear of it.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "optim/shard_placement.h"

namespace flashshard {

class ShardGroups {
 public:
  /// Collective. `all` must outlive it.
  ShardGroups(Communicator& all, const ShardPlacement& placement) : all_(all) {
    if (placement.group() > 1 && placement.replicas() > 1) {
      own_group_ = all.split(all.rank() / placement.group());
      own_replicas_ = all.split(all.rank() % placement.group());
      group_ = own_group_.get();
      replicas_ = own_replicas_.get();
    } else if (all.world_size() > 1) {
      (placement.group() > 1 ? group_ : replicas_) = &all;
    }
  }

  Communicator& all() const { return all_; }
  /// By place in the group; null for a group of one.
  Communicator* group() { return group_; }
  /// By group; null where there is one.
  Communicator* replicas() { return replicas_; }

 private:
  Communicator& all_;
  std::unique_ptr<Communicator> own_group_, own_replicas_;
  Communicator* group_ = nullptr;
  Communicator* replicas_ = nullptr;
};

}  // namespace flashshard
