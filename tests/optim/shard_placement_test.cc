// Who owns and holds which shards: every shard has one owner, every group holds all of them, and
// stage 0 and plain ZeRO are the ends of one rule.
#include "optim/shard_placement.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>
#include <vector>

#include "kernels/error.h"

namespace flashshard {
namespace {

Sharding in_groups(int stage, int group) {
  Sharding sharding;
  sharding.stage = stage;
  sharding.group = group;
  return sharding;
}

bool holds(ShardRange range, int shard) { return shard >= range.first && shard < range.end(); }

class Placements : public testing::TestWithParam<std::pair<int, int>> {};

TEST_P(Placements, GiveEveryShardOneOwnerAndEveryGroupAllOfThem) {
  const auto [world_size, group] = GetParam();
  std::set<int> owned;
  std::vector<int> holders(static_cast<size_t>(world_size));
  for (int r = 0; r < world_size; ++r) {
    const ShardPlacement placement(in_groups(3, group), world_size, r);
    owned.insert(placement.own());
    EXPECT_TRUE(holds(placement.states(), placement.own()));
    EXPECT_EQ(placement.weights().first, placement.states().first);
    EXPECT_EQ(placement.is_first_replica(), r < group);
    EXPECT_EQ(placement.owned_by_all()[static_cast<size_t>(r)].first, placement.own());
    EXPECT_EQ(placement.owned_by_replicas()[static_cast<size_t>(r / group)].first, placement.own());
    const ShardRange in_group = placement.held_by_group()[static_cast<size_t>(r % group)];
    EXPECT_EQ(in_group.first, placement.states().first);
    EXPECT_EQ(in_group.count, placement.states().count);
    for (int s = placement.states().first; s < placement.states().end(); ++s) {
      ++holders[static_cast<size_t>(s)];
    }
    // What the rank holds its replicas own, one each.
    for (int other = 0; other < world_size; ++other) {
      EXPECT_EQ(holds(placement.states(), placement.shard_of(other)), other % group == r % group);
    }
  }
  EXPECT_EQ(owned.size(), static_cast<size_t>(world_size));
  for (const int count : holders) EXPECT_EQ(count, world_size / group);
}

std::vector<std::pair<int, int>> worlds_and_groups() {
  std::vector<std::pair<int, int>> all;
  for (int world_size : {1, 2, 3, 4, 6, 8, 12}) {
    for (int group = 1; group <= world_size; ++group) {
      if (world_size % group == 0) all.emplace_back(world_size, group);
    }
  }
  return all;
}
INSTANTIATE_TEST_SUITE_P(Worlds, Placements, testing::ValuesIn(worlds_and_groups()));

TEST(ShardPlacement, OfOneGroupIsPlainZeroAndOfStage0IsGroupsOfOne) {
  for (int r = 0; r < 4; ++r) {
    const ShardPlacement plain(in_groups(2, 0), 4, r);
    EXPECT_EQ(plain.own(), r);
    EXPECT_EQ(plain.states().first, r);
    EXPECT_EQ(plain.states().count, 1);
    EXPECT_EQ(plain.weights().count, 4);
    const ShardPlacement whole(in_groups(0, 0), 4, r);
    EXPECT_EQ(whole.own(), r);
    EXPECT_EQ(whole.states().count, 4);
  }
}

TEST(ShardPlacement, RefusesGroupsThatDoNotDivideTheRanks) {
  EXPECT_THROW(ShardPlacement(in_groups(1, 3), 4, 0), Error);
  EXPECT_THROW(ShardPlacement(in_groups(1, 8), 4, 0), Error);
}

}  // namespace
}  // namespace flashshard
