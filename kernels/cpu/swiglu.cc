// The gated activation of Llama's feed-forward layer (arXiv 2002.05202): silu(gate) * up.
#include "kernels/cpu/vector_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/swiglu.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashshard::cpu::HWY_NAMESPACE {

template <class T>
HWY_INLINE void forward(const SwiGluForward& call, Range rows) {
  const int64_t width = call.out.shape[1];
  for (int64_t t = rows.first; t < rows.last; ++t) {
    const T* gate = call.gate_up.as<const T>() + t * 2 * width;
    const T* up = gate + width;
    T* out = call.out.as<T>() + t * width;
    for_each_vector(width, [=](size_t i, size_t n) VECTOR_BODY {
      const auto g = load_first(gate + i, n);
      store_first(hn::Mul(hn::Mul(g, sigmoid(g)), load_first(up + i, n)), out + i, n);
    });
  }
}

/// With s = sigmoid(gate): d silu = s * (1 + gate * (1 - s)).
template <class T>
HWY_INLINE void backward(const SwiGluBackward& call, Range rows) {
  const int64_t width = call.grad_out.shape[1];
  const auto one = broadcast(1.0f);
  for (int64_t t = rows.first; t < rows.last; ++t) {
    const T* gate = call.gate_up.as<const T>() + t * 2 * width;
    const T* up = gate + width;
    const T* grad_out = call.grad_out.as<const T>() + t * width;
    T* grad_gate = call.grad_gate_up.as<T>() + t * 2 * width;
    T* grad_up = grad_gate + width;
    for_each_vector(width, [=](size_t i, size_t n) VECTOR_BODY {
      // All reads come before the writes: gradient and input may be the same memory.
      const auto g = load_first(gate + i, n);
      const auto u = load_first(up + i, n);
      const auto dy = load_first(grad_out + i, n);
      const auto s = sigmoid(g);
      const auto slope = hn::Mul(s, hn::MulAdd(g, hn::Sub(one, s), one));
      store_first(hn::Mul(hn::Mul(dy, u), slope), grad_gate + i, n);
      store_first(hn::Mul(dy, hn::Mul(g, s)), grad_up + i, n);
    });
  }
}

void swiglu_rows_impl(const SwiGluForward& call, Range rows) {
  call.out.dtype == DType::kBF16 ? forward<Bf16>(call, rows) : forward<float>(call, rows);
}
void swiglu_backward_rows_impl(const SwiGluBackward& call, Range rows) {
  call.grad_out.dtype == DType::kBF16 ? backward<Bf16>(call, rows) : backward<float>(call, rows);
}

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashshard::cpu {

HWY_EXPORT(swiglu_rows_impl);
HWY_EXPORT(swiglu_backward_rows_impl);

void swiglu_rows(const SwiGluForward& call, Range rows) {
  HWY_DYNAMIC_DISPATCH(swiglu_rows_impl)(call, rows);
}
void swiglu_backward_rows(const SwiGluBackward& call, Range rows) {
  HWY_DYNAMIC_DISPATCH(swiglu_backward_rows_impl)(call, rows);
}

}  // namespace flashshard::cpu
#endif
