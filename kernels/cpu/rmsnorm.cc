// Root-mean-square normalisation (arXiv 1910.07467), fused with the residual addition in front of
// it.
#include <cassert>
#include <cmath>

#include "kernels/cpu/vector_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rmsnorm.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashshard::cpu::HWY_NAMESPACE {

/// sum = x + delta as stored (rounded), and the sum of its squares.
template <class T>
HWY_INLINE float add_residual(const T* x, const T* delta, T* sum, int64_t width) {
  auto squares = zero();
  for_each_vector(width, [&](size_t i, size_t n) VECTOR_BODY {
    store_first(hn::Add(load_first(x + i, n), load_first(delta + i, n)), sum + i, n);
    // What backward will see is the stored value, so that is what gets normalised.
    const auto stored = load_first(sum + i, n);
    squares = hn::MulAdd(stored, stored, squares);
  });
  return sum_of_lanes(squares);
}

template <class T>
HWY_INLINE float sum_of_squares(const T* x, int64_t width) {
  auto squares = zero();
  for_each_vector(width, [&](size_t i, size_t n) VECTOR_BODY {
    const auto value = load_first(x + i, n);
    squares = hn::MulAdd(value, value, squares);
  });
  return sum_of_lanes(squares);
}

template <class T>
HWY_INLINE void forward(const RmsNormForward& call, Range rows) {
  const int64_t width = call.weight.shape[0];
  const T* weight = call.weight.as<const T>();
  for (int64_t t = rows.first; t < rows.last; ++t) {
    const T* source = call.x.as<const T>() + t * width;
    float squares;
    if (call.delta) {
      T* sum = call.sum.as<T>() + t * width;
      squares = add_residual(source, call.delta.as<const T>() + t * width, sum, width);
      source = sum;
    } else {
      squares = sum_of_squares(source, width);
    }
    const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(width) + call.epsilon);
    call.inverse_rms.as<float>()[t] = inverse;
    T* out = call.out.as<T>() + t * width;
    const auto scale = broadcast(inverse);
    for_each_vector(width, [=](size_t i, size_t n) VECTOR_BODY {
      const auto normalised = hn::Mul(load_first(source + i, n), scale);
      store_first(hn::Mul(normalised, load_first(weight + i, n)), out + i, n);
    });
  }
}

/// With n = x * r, g = grad_out * weight: grad_x += r * (g - n * mean(g * n)); grad_weight +=
/// grad_out * n.
template <class T>
HWY_INLINE void backward(const RmsNormBackward& call, Range rows, float* weight_sum) {
  const int64_t width = call.weight.shape[0];
  const T* weight = call.weight.as<const T>();
  for (int64_t t = rows.first; t < rows.last; ++t) {
    const T* x = call.x.as<const T>() + t * width;
    const T* grad_out = call.grad_out.as<const T>() + t * width;
    T* grad_x = call.grad_x.as<T>() + t * width;
    const float inverse = call.inverse_rms.as<const float>()[t];
    const auto scale = broadcast(inverse);
    auto dot = zero();
    for_each_vector(width, [&](size_t i, size_t n) VECTOR_BODY {
      const auto share = hn::Mul(load_first(grad_out + i, n), hn::Mul(load_first(x + i, n), scale));
      dot = hn::MulAdd(share, load_first(weight + i, n), dot);
      store_first(hn::Add(load_first(weight_sum + i, n), share), weight_sum + i, n);
    });
    const auto mean = broadcast(sum_of_lanes(dot) / static_cast<float>(width));
    for_each_vector(width, [=](size_t i, size_t n) VECTOR_BODY {
      const auto g = hn::Mul(load_first(grad_out + i, n), load_first(weight + i, n));
      const auto normalised = hn::Mul(load_first(x + i, n), scale);
      const auto gradient = hn::NegMulAdd(normalised, mean, g);
      store_first(hn::MulAdd(gradient, scale, load_first(grad_x + i, n)), grad_x + i, n);
    });
  }
}

void rmsnorm_rows_impl(const RmsNormForward& call, Range rows) {
  call.x.dtype == DType::kBF16 ? forward<Bf16>(call, rows) : forward<float>(call, rows);
}
void rmsnorm_backward_rows_impl(const RmsNormBackward& call, Range rows, float* weight_sum) {
  call.x.dtype == DType::kBF16 ? backward<Bf16>(call, rows, weight_sum)
                               : backward<float>(call, rows, weight_sum);
}

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashshard::cpu {

HWY_EXPORT(rmsnorm_rows_impl);
HWY_EXPORT(rmsnorm_backward_rows_impl);

void rmsnorm_rows(const RmsNormForward& call, Range rows) {
  HWY_DYNAMIC_DISPATCH(rmsnorm_rows_impl)(call, rows);
}
void rmsnorm_backward_rows(const RmsNormBackward& call, Range rows, float* weight_sum) {
  HWY_DYNAMIC_DISPATCH(rmsnorm_backward_rows_impl)(call, rows, weight_sum);
}

}  // namespace flashshard::cpu
#endif
