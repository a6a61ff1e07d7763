// The lane code as CUDA compiles it: formulas, formats and rules on LaneArithmetic. Every source
// that includes it has its own copy.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/lane_arithmetic.cuh"
#include "kernels/cuda/sharding_tables.h"
#include "kernels/cuda/update_table.h"
#include "kernels/cuda/warp_lanes.cuh"
#include "kernels/numerics/exact_sum.h"
#include "kernels/numerics/formats.h"

namespace flashshard::cuda {
namespace {
// Each needs the ones before it.
// clang-format off
#include "kernels/numerics/formulas.inc"
#include "kernels/numerics/stored_values.inc"
#include "kernels/numerics/rules.inc"
#include "kernels/cuda/lane_memory.inc"
#include "kernels/cuda/update_lanes.inc"
#include "kernels/cuda/sharding_lanes.inc"
// clang-format on
}  // namespace
}  // namespace flashshard::cuda
