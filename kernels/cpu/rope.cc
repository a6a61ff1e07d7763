// Rotary position embedding (arXiv 2104.09864) in Hugging Face's half-split layout, in place on
// rows of q‖k‖v.
#include "kernels/cpu/vector_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashshard::cpu::HWY_NAMESPACE {

/// (a, b) -> (a cos - b sin, b cos + a sin); the inverse has the sign of the sine turned.
template <class T>
HWY_INLINE void rotate_head(T* head, const float* cosine, const float* sine, float sign,
                            int64_t half) {
  const auto direction = broadcast(sign);
  for_each_vector(half, [=](size_t i, size_t n) VECTOR_BODY {
    const auto c = load_first(cosine + i, n);
    const auto s = hn::Mul(load_first(sine + i, n), direction);
    const auto a = load_first(head + i, n);
    const auto b = load_first(head + half + i, n);
    store_first(hn::NegMulAdd(b, s, hn::Mul(a, c)), head + i, n);
    store_first(hn::MulAdd(a, s, hn::Mul(b, c)), head + half + i, n);
  });
}

template <class T>
HWY_INLINE void rotate(const Rope& call, Range rows) {
  const int64_t width = (call.heads + 2 * call.kv_heads) * int64_t{call.head_dim};
  const int64_t half = call.head_dim / 2;
  const int rotated_heads = call.heads + call.kv_heads;
  for (int64_t t = rows.first; t < rows.last; ++t) {
    const int64_t position = call.first_position + t % call.sequence_length;
    const float* cosine = call.cosine_sine.as<const float>() + position * call.head_dim;
    T* row = call.qkv.as<T>() + t * width;
    for (int h = 0; h < rotated_heads; ++h) {
      rotate_head(row + int64_t{h} * call.head_dim, cosine, cosine + half,
                  call.inverse ? -1.0f : 1.0f, half);
    }
  }
}

void rope_rows_impl(const Rope& call, Range rows) {
  call.qkv.dtype == DType::kBF16 ? rotate<Bf16>(call, rows) : rotate<float>(call, rows);
}

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashshard::cpu {

HWY_EXPORT(rope_rows_impl);

void rope_rows(const Rope& call, Range rows) { HWY_DYNAMIC_DISPATCH(rope_rows_impl)(call, rows); }

}  // namespace flashshard::cpu
#endif
