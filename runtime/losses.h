// Losses of many micro-batches on many ranks as one.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "comm/communicator.h"
#include "runtime/model/model.h"

namespace flashshard {

/// The sum over micro-batches, `own[k]` being that of number k N + r on rank r of N: added in the
/// order of their numbers, so that the bits do not depend on N. `rounds`: the largest k + 1 of any
/// rank. Collective; `what` names the wait.
LossResult sum_in_order(Communicator& communicator, std::string_view what,
                        std::span<const LossResult> own, int64_t rounds);

}  // namespace flashshard
