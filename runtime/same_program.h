// All ranks of a run are the same program; those of a reproducible run compute with the same
// instructions and libraries too.
#pragma once

#include <string_view>

#include "comm/communicator.h"

namespace flashshard {

/// Compares rank 0's executable, by the hash of its file, and `environment`
/// (Backend::environment(); empty: not compared) with every rank's. Collective. Throws
/// AgreedError(kUsage) naming the lowest rank that differs.
void require_same_program(Communicator& communicator, std::string_view environment);

}  // namespace flashshard
