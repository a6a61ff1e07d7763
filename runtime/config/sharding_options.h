// The sharding that a configuration asks for.
#pragma once

#include "optim/sharding.h"
#include "proto/run.pb.h"

namespace flashshard {

/// Of a resolved configuration. `local_sums` is left open: it depends on the number of ranks.
Sharding sharding_of(const proto::RunConfig& config);

/// On so many ranks. Throws Error(kUsage) where the combination is illegal there.
Sharding sharding_of(const proto::RunConfig& config, int world_size);

}  // namespace flashshard
