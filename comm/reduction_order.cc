#include "comm/reduction_order.h"

#include <algorithm>

namespace flashshard {

namespace {

int divide_up(int64_t dividend, int64_t divisor) {
  return static_cast<int>((dividend + divisor - 1) / divisor);
}

}  // namespace

int RankGroups::size(int group) const { return std::min(group_, world_size_ - first(group)); }

int RankGroups::relay(int group, int owner) const {
  return first(group) + static_cast<int>(int64_t{owner} * size(group) / world_size_);
}

RankGroups::Owners RankGroups::relayed_by(int rank) const {
  const int group = group_of(rank);
  const int64_t position = rank - first(group);
  const int64_t members = size(group);
  return {divide_up(position * world_size_, members),
          divide_up((position + 1) * world_size_, members)};
}

}  // namespace flashshard
