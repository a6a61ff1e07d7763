// The codec and update loops on Highway vectors, compiled once for AVX2 and once for AVX-512, or
// for NEON, and chosen at run time. Other instruction sets lack fused multiply-add (SSE) or are not
// built here, and use the scalar loops.
#include <algorithm>
#include <array>
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

#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/update_vector.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/highway.h"

#define FLASHSHARD_FORMULA HWY_INLINE

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
HWY_BEFORE_NAMESPACE();
namespace flashshard::cpu::HWY_NAMESPACE {
namespace {
// Each needs the ones before it.
// clang-format off
#include "kernels/numerics/formulas.inc"
#include "kernels/numerics/vector_arithmetic.inc"
#include "kernels/numerics/stored_values.inc"
#include "kernels/numerics/rules.inc"
#include "kernels/cpu/update_storage.inc"
#include "kernels/cpu/update_block.inc"
#include "kernels/cpu/update_moments.inc"
#include "kernels/cpu/update_rules.inc"
#include "kernels/cpu/update_loops.inc"
// clang-format on
}  // namespace

const UpdateLoops& vector_update_loops() {
  static constexpr UpdateLoops kLoops =
      loops_of<VectorArithmetic>(HWY_TARGET == HWY_AVX2   ? "avx2"
                                 : HWY_TARGET == HWY_AVX3 ? "avx512"
                                                          : "neon");
  return kLoops;
}

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#undef FLASHSHARD_FORMULA

#if HWY_ONCE
namespace flashshard::cpu {

std::vector<const UpdateLoops*> available_update_loops() {
  std::vector<const UpdateLoops*> loops = {&scalar_update_loops()};
  [[maybe_unused]] const auto supported = hwy::SupportedTargets();
#if HWY_TARGETS & HWY_AVX2
  if (supported & HWY_AVX2) loops.push_back(&N_AVX2::vector_update_loops());
#endif
#if HWY_TARGETS & HWY_NEON
  if (supported & HWY_NEON) loops.push_back(&N_NEON::vector_update_loops());
#endif
#if HWY_TARGETS & HWY_AVX3
  if (supported & HWY_AVX3) loops.push_back(&N_AVX3::vector_update_loops());
#endif
  return loops;
}

const UpdateLoops& update_loops() {
  static const UpdateLoops& fastest = *available_update_loops().back();
  return fastest;
}

}  // namespace flashshard::cpu
#endif
