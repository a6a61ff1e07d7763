// The codec and update loops without vector instructions: the reference of all others, and what
// runs where they cannot.
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/update_health.h"
#include "kernels/cpu/update_loops.h"
#include "kernels/numerics/exact_sum.h"
#include "kernels/numerics/formats.h"
#include "kernels/numerics/rounding.h"
#include "kernels/numerics/scalar_arithmetic.h"
#include "kernels/numerics/update_family.h"

static_assert(std::endian::native == std::endian::little, "the noise bytes are in memory order");

#define FLASHSHARD_FORMULA inline __attribute__((always_inline))

namespace flashshard::cpu {
namespace {
// Each needs the ones before it.
// clang-format off
#include "kernels/numerics/formulas.inc"
#include "kernels/numerics/stored_values.inc"
#include "kernels/numerics/rules.inc"
#include "kernels/cpu/update_storage.inc"
#include "kernels/cpu/update_block.inc"
#include "kernels/cpu/update_moments.inc"
#include "kernels/cpu/update_rules.inc"
#include "kernels/cpu/update_loops.inc"
// clang-format on
}  // namespace

const UpdateLoops& scalar_update_loops() {
  static constexpr UpdateLoops kLoops = loops_of<numerics::ScalarArithmetic>("scalar");
  return kLoops;
}

}  // namespace flashshard::cpu
