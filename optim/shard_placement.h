// Which shards a rank owns and which it holds (docs/sharding.md). There are as many shards as ranks
// (shard_layout.h), and each is owned by one rank, which reduces its gradients, saves and loads it.
// What a stage divides is divided among the ranks of a group, consecutive ones; the ranks at the
// same place of other groups are replicas: they own consecutive shards and each holds all of them.
//
//   4 ranks, groups of 2     rank     0     1  |  2     3
//                            owns     0     2  |  1     3
//                            holds   0 1   2 3 | 0 1   2 3
//
// One group of all ranks is plain ZeRO. Stage 0 is groups of one: a rank owns a shard and holds
// all. Hybrid sharding as in MiCS (arXiv 2205.00119) and FSDP.
#pragma once

#include <vector>

#include "optim/shard_layout.h"
#include "optim/sharding.h"

namespace flashshard {

class ShardPlacement {
 public:
  /// Throws Error(kInternal) for groups that do not divide the ranks.
  ShardPlacement(const Sharding& sharding, int world_size, int rank);

  int world_size() const { return world_size_; }
  int rank() const { return rank_; }
  /// Ranks of a group, which divide the shards among them, and how many groups there are.
  int group() const { return group_; }
  int replicas() const { return world_size_ / group_; }
  /// Of the ranks that hold the same shards one makes what is counted or written once.
  bool is_first_replica() const { return rank_ < group_; }

  int shard_of(int rank) const { return rank % group_ * replicas() + rank / group_; }
  int own() const { return shard_of(rank_); }
  /// Held: states and the gradients that change them; weights.
  ShardRange states() const { return {rank_ % group_ * replicas(), replicas()}; }
  ShardRange weights() const { return divides_weights_ ? states() : ShardRange{0, world_size_}; }

  /// What each of these ranks brings to a collective: all ranks, by rank, the shard that it owns;
  /// the replicas, by group, the shard that each owns; the ranks of a group, by place, the shards
  /// that each holds.
  std::vector<ShardRange> owned_by_all() const;
  std::vector<ShardRange> owned_by_replicas() const;
  std::vector<ShardRange> held_by_group() const;

 private:
  int world_size_;
  int rank_;
  int group_;
  bool divides_weights_;
};

}  // namespace flashshard
