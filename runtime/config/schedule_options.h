// The learning-rate schedule that a configuration asks for.
#pragma once

#include "optim/schedule.h"
#include "proto/run.pb.h"

namespace flashshard {

/// Of a resolved configuration.
Schedule schedule_of(const proto::RunConfig& config);

}  // namespace flashshard
