// In which order a reduction sums the ranks' contributions, and who sums what (docs/sharding.md).
//
// FLAT: a left fold over the contributing ranks in ascending order, at the owner of the slice.
// TWO_LEVEL: the ranks stand in groups of so many consecutive ones (the last may be smaller). A
// left fold over the contributors of each group gives its fp32 partial; a left fold over the
// partials, in the order of the groups, gives the sum. In each group one member, the relay of an
// owner, forms the group's partial for it: a group spreads the owners evenly over its members, each
// of which relays for consecutive owners.
#pragma once

#include <cstdint>

namespace flashshard {

struct ReductionOrder {
  enum class Kind : uint8_t { kFlat, kTwoLevel };
  Kind kind = Kind::kFlat;
  int group = 0;  // kTwoLevel: ranks of a group, at least 1
};

/// The groups of kTwoLevel and their relays.
class RankGroups {
 public:
  RankGroups(int world_size, int group) : world_size_(world_size), group_(group) {}

  int group_of(int rank) const { return rank / group_; }
  int first(int group) const { return group * group_; }
  int size(int group) const;

  /// The member of `group` that forms its partial of `owner`'s slice.
  int relay(int group, int owner) const;
  struct Owners {
    int begin = 0, end = 0;
  };
  /// The owners that `rank` relays for in its group.
  Owners relayed_by(int rank) const;

 private:
  int world_size_;
  int group_;
};

}  // namespace flashshard
