// Which compilations of the plain loops there are.
#include <array>

#include "launch/bench/plain_update.h"

namespace flashshard::launch {

#if defined(__x86_64__)
extern const PlainUpdates kPlainUpdatesAvx2[2], kPlainUpdatesAvx512[2];
std::span<const PlainUpdates> plain_updates() {
  static const std::array tables = {kPlainUpdatesAvx2[0], kPlainUpdatesAvx2[1],
                                    kPlainUpdatesAvx512[0], kPlainUpdatesAvx512[1]};
  return tables;
}
#elif defined(__aarch64__)
extern const PlainUpdates kPlainUpdatesNeon[2];
std::span<const PlainUpdates> plain_updates() { return kPlainUpdatesNeon; }
#else
std::span<const PlainUpdates> plain_updates() { return {}; }
#endif

}  // namespace flashshard::launch
