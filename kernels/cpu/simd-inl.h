// Vector building blocks of the CPU kernels over Highway: bf16 and fp32 memory seen as fp32
// vectors, loops with a short last vector, and exp. Included once per instruction set (hence the
// toggling guard).
#if defined(FLASHSHARD_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHSHARD_KERNELS_CPU_SIMD_INL_H_
#undef FLASHSHARD_KERNELS_CPU_SIMD_INL_H_
#else
#define FLASHSHARD_KERNELS_CPU_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

// Stands between a lambda's parameters and its body: inlined, so that the full-vector case is known
// at compile time, and compiled for the target at hand.
#ifndef VECTOR_BODY
#define VECTOR_BODY __attribute__((always_inline)) HWY_ATTR
#endif

HWY_BEFORE_NAMESPACE();
namespace flashshard::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Bf16 = uint16_t;  // the upper half of an fp32 bit pattern
using FloatTag = hn::ScalableTag<float>;
using FloatVector = hn::Vec<FloatTag>;
inline constexpr size_t kMaxLanes = hn::MaxLanes(FloatTag());

HWY_INLINE size_t lanes() { return hn::Lanes(FloatTag()); }
HWY_INLINE FloatVector broadcast(float value) { return hn::Set(FloatTag(), value); }
HWY_INLINE FloatVector zero() { return hn::Zero(FloatTag()); }

HWY_INLINE FloatVector load(const float* from) { return hn::LoadU(FloatTag(), from); }
HWY_INLINE FloatVector load(const Bf16* from) {
  const hn::Rebind<uint16_t, FloatTag> narrow_tag;
  const hn::Rebind<uint32_t, FloatTag> bits_tag;
  return hn::BitCast(FloatTag(),
                     hn::ShiftLeft<16>(hn::PromoteTo(bits_tag, hn::LoadU(narrow_tag, from))));
}

HWY_INLINE void store(FloatVector value, float* to) { hn::StoreU(value, FloatTag(), to); }
/// Rounds to nearest, ties to even; every NaN becomes 0x7fc0 (kernels/numerics/bf16.h, vectorised).
HWY_INLINE void store(FloatVector value, Bf16* to) {
  const hn::Rebind<uint16_t, FloatTag> narrow_tag;
  const hn::Rebind<uint32_t, FloatTag> bits_tag;
  const hn::Rebind<int32_t, FloatTag> signed_tag;
  const auto bits = hn::BitCast(bits_tag, value);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(upper, hn::Set(bits_tag, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(bits_tag, 0x7fffu))));
  const auto not_a_number = hn::RebindMask(bits_tag, hn::IsNaN(value));
  const auto result = hn::IfThenElse(not_a_number, hn::Set(bits_tag, 0x7fc0u), rounded);
  hn::StoreU(hn::DemoteTo(narrow_tag, hn::BitCast(signed_tag, result)), narrow_tag, to);
}

/// The first `count` elements, zeros behind them; count <= lanes().
template <class T>
HWY_INLINE FloatVector load_first(const T* from, size_t count) {
  if (count == lanes()) return load(from);
  T buffer[kMaxLanes] = {};
  std::memcpy(buffer, from, count * sizeof(T));
  return load(buffer);
}
template <class T>
HWY_INLINE void store_first(FloatVector value, T* to, size_t count) {
  if (count == lanes()) return store(value, to);
  T buffer[kMaxLanes];
  store(value, buffer);
  std::memcpy(to, buffer, count * sizeof(T));
}

/// body(i, n) over [0, count) in steps of one vector: n = lanes(), and less in the last step.
template <class Body>
HWY_INLINE void for_each_vector(int64_t count, Body body) {
  const size_t step = lanes();
  const auto total = static_cast<size_t>(count);
  size_t i = 0;
  for (; i + step <= total; i += step) body(i, step);
  if (i < total) body(i, total - i);
}

HWY_INLINE float sum_of_lanes(FloatVector value) {
  return hn::GetLane(hn::SumOfLanes(FloatTag(), value));
}
HWY_INLINE float max_of_lanes(FloatVector value) {
  return hn::GetLane(hn::MaxOfLanes(FloatTag(), value));
}

/// e^x within 2 units in the last place for x in [-86.5, 88]; 0 below, e^88 above, NaN stays NaN.
/// Range reduction and polynomial of Cephes' expf.
HWY_INLINE FloatVector exp(FloatVector x) {
  const FloatTag d;
  const hn::Rebind<int32_t, FloatTag> integers;
  const auto low = hn::Set(d, -86.5f), high = hn::Set(d, 88.0f);
  const auto below = hn::Lt(x, low);
  // Comparisons rather than Min and Max, which drop a NaN on some targets.
  const auto clamped = hn::IfThenElse(below, low, hn::IfThenElse(hn::Gt(x, high), high, x));
  const auto power = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504088896341f)));
  auto r = hn::NegMulAdd(power, hn::Set(d, 0.693359375f), clamped);
  r = hn::NegMulAdd(power, hn::Set(d, -2.12194440e-4f), r);
  auto p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  // 2^power is a normal number throughout the range. A product, so that a NaN of p stays one.
  const auto exponent = hn::Add(hn::ConvertTo(integers, power), hn::Set(integers, 127));
  const auto scaled = hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(exponent)));
  return hn::IfThenZeroElse(below, scaled);
}

/// 1 / (1 + e^-x).
HWY_INLINE FloatVector sigmoid(FloatVector x) {
  const auto one = broadcast(1.0f);
  return hn::Div(one, hn::Add(one, exp(hn::Neg(x))));
}

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
