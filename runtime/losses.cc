#include "runtime/losses.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace flashshard {

LossResult sum_in_order(Communicator& communicator, std::string_view what,
                        std::span<const LossResult> own, int64_t rounds) {
  static_assert(std::is_trivially_copyable_v<LossResult>);
  const auto ranks = static_cast<size_t>(communicator.world_size());
  const auto count = static_cast<size_t>(rounds);
  std::vector<LossResult> all(ranks * count);
  std::ranges::copy(own, all.begin() + static_cast<ptrdiff_t>(count) * communicator.rank());
  const size_t bytes = count * sizeof(LossResult);
  std::vector<ByteRange> ranges;
  for (size_t r = 0; r < ranks; ++r) ranges.push_back({r * bytes, bytes});
  communicator.all_gather(std::as_writable_bytes(std::span(all)), ranges).wait(what);
  LossResult sum;
  for (size_t k = 0; k < count; ++k) {
    for (size_t r = 0; r < ranks; ++r) {
      sum.loss_sum += all[r * count + k].loss_sum;
      sum.token_count += all[r * count + k].token_count;
    }
  }
  return sum;
}

}  // namespace flashshard
