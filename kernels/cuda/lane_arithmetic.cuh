// Arithmetic policy of one CUDA lane: the counterpart of ScalarArithmetic, with the same bits.
// Sources that use it compile with -fmad=false -ftz=false -prec-div=true -prec-sqrt=true: operators
// are rounded once each, divisions correctly.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define FLASHSHARD_FORMULA __device__ __forceinline__

namespace flashshard::cuda {
namespace {
#include "kernels/cuda/refined_quotients.inc"
}  // namespace

struct LaneArithmetic {
  using F = float;
  using U = uint32_t;
  static constexpr int kLanes = 1;

  static __device__ __forceinline__ F set(float value) { return value; }
  static __device__ __forceinline__ U set_bits(uint32_t value) { return value; }
  static __device__ __forceinline__ U bits(F x) { return __float_as_uint(x); }
  static __device__ __forceinline__ F from_bits(U x) { return __uint_as_float(x); }
  static __device__ __forceinline__ F to_float(U x) {
    return __int2float_rn(static_cast<int32_t>(x));
  }

  static __device__ __forceinline__ F fma(F a, F b, F c) { return __fmaf_rn(a, b, c); }
  static __device__ __forceinline__ F fma_minus(F a, F b, F c) { return __fmaf_rn(a, b, -c); }
  static __device__ __forceinline__ F sqrt(F x) {
    return refined_root(x, fma, [](float v) {
      float y;
      asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v));
      asm("min.NaN.f32 %0, %0, 0f71800000;" : "+f"(y));  // 2^100
      return y;
    });
  }
  static __device__ __forceinline__ F divide_code(F a, F b) {
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(b));
    return refined_quotient(a, b, reciprocal, fma);
  }
  static __device__ __forceinline__ F divide_by(F a, F b, F reciprocal) {
    return corrected_quotient(a, b, reciprocal, fma);
  }
  static __device__ __forceinline__ F floor(F x) { return floorf(x); }
  static __device__ __forceinline__ U truncate(F x) { return static_cast<U>(__float2int_rz(x)); }
  static __device__ __forceinline__ F abs(F x) { return fabsf(x); }
  static __device__ __forceinline__ U sign_byte(F x) {
    return static_cast<U>(static_cast<int32_t>(bits(x)) >> 31) & 0xffu;
  }

  static __device__ __forceinline__ U max(U a, U b) { return umax(a, b); }
  static __device__ __forceinline__ U min(U a, U b) { return umin(a, b); }
  static __device__ __forceinline__ U select_greater(U a, U b, U yes, U no) {
    return a > b ? yes : no;
  }
  template <int kBits>
  static __device__ __forceinline__ U shift_left(U x) {
    return x << kBits;
  }
  template <int kBits>
  static __device__ __forceinline__ U shift_right(U x) {
    return x >> kBits;
  }
};

}  // namespace flashshard::cuda
