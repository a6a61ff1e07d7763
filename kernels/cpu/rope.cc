// Rotary position embedding (arXiv 2104.09864) in Hugging Face's half-split layout, in place on
// rows of q‖k‖v, fused with the addition of their bias.
#include "kernels/cpu/vector_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashshard::cpu::HWY_NAMESPACE {

/// (a, b) -> (a cos - b sin, b cos + a sin); the inverse has the sign of the sine turned. With a
/// bias, (a, b) is what the head holds plus its bias.
template <bool kBiased, class T>
HWY_INLINE void rotate_head(T* head, const T* bias, const float* cosine, const float* sine,
                            float sign, int64_t half) {
  const auto direction = broadcast(sign);
  for_each_vector(half, [=](size_t i, size_t n) VECTOR_BODY {
    const auto c = load_first(cosine + i, n);
    const auto s = hn::Mul(load_first(sine + i, n), direction);
    auto a = load_first(head + i, n);
    auto b = load_first(head + half + i, n);
    if constexpr (kBiased) {
      a = hn::Add(a, load_first(bias + i, n));
      b = hn::Add(b, load_first(bias + half + i, n));
    }
    store_first(hn::NegMulAdd(b, s, hn::Mul(a, c)), head + i, n);
    store_first(hn::MulAdd(a, s, hn::Mul(b, c)), head + half + i, n);
  });
}

template <class T>
HWY_INLINE void add_bias(T* values, const T* bias, int64_t count) {
  for_each_vector(count, [=](size_t i, size_t n) VECTOR_BODY {
    store_first(hn::Add(load_first(values + i, n), load_first(bias + i, n)), values + i, n);
  });
}

template <bool kBiased, class T>
HWY_INLINE void rotate(const Rope& call, Range rows) {
  const int64_t width = (call.heads + 2 * call.kv_heads) * int64_t{call.head_dim};
  const int64_t half = call.head_dim / 2;
  const int rotated_heads = call.heads + call.kv_heads;
  const int64_t rotated_width = int64_t{rotated_heads} * call.head_dim;
  const T* bias = call.bias.as<const T>();
  const auto* starts = call.document_starts.as<const int32_t>();
  for (int64_t t = rows.first; t < rows.last; ++t) {
    const int64_t position =
        call.first_position + t % call.sequence_length - (starts == nullptr ? 0 : starts[t]);
    const float* cosine = call.cosine_sine.as<const float>() + position * call.head_dim;
    T* row = call.qkv.as<T>() + t * width;
    for (int h = 0; h < rotated_heads; ++h) {
      const int64_t first = int64_t{h} * call.head_dim;
      rotate_head<kBiased>(row + first, kBiased ? bias + first : nullptr, cosine, cosine + half,
                           call.inverse ? -1.0f : 1.0f, half);
    }
    if constexpr (kBiased) {
      add_bias(row + rotated_width, bias + rotated_width, width - rotated_width);
    }
  }
}

template <class T>
HWY_INLINE void rotate_biased_or_not(const Rope& call, Range rows) {
  call.bias ? rotate<true, T>(call, rows) : rotate<false, T>(call, rows);
}

void rope_rows_impl(const Rope& call, Range rows) {
  call.qkv.dtype == DType::kBF16 ? rotate_biased_or_not<Bf16>(call, rows)
                                 : rotate_biased_or_not<float>(call, rows);
}

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashshard::cpu {

HWY_EXPORT(rope_rows_impl);

void rope_rows(const Rope& call, Range rows) { HWY_DYNAMIC_DISPATCH(rope_rows_impl)(call, rows); }

}  // namespace flashshard::cpu
#endif
