// Softmax over chunks of the vocabulary: online log-sum-exp (arXiv 1805.02867) and the gradient of
// the loss.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/vector_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/softmax.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashshard::cpu::HWY_NAMESPACE {

HWY_INLINE float row_maximum(const float* row, int64_t columns) {
  auto maximum = broadcast(-std::numeric_limits<float>::infinity());
  int64_t c = 0;
  const auto step = static_cast<int64_t>(lanes());
  for (; c + step <= columns; c += step) maximum = hn::Max(maximum, load(row + c));
  float result = max_of_lanes(maximum);
  for (; c < columns; ++c) result = std::max(result, row[c]);
  return result;
}

HWY_INLINE float row_sum_of_exp(const float* row, float maximum, int64_t columns) {
  const auto shift = broadcast(maximum);
  auto sum = zero();
  for_each_vector(columns, [&](size_t i, size_t n) VECTOR_BODY {
    const auto value = exp(hn::Sub(load_first(row + i, n), shift));
    sum = hn::Add(sum, n == lanes() ? value : hn::IfThenElseZero(hn::FirstN(FloatTag(), n), value));
  });
  return sum_of_lanes(sum);
}

void softmax_update_rows_impl(const LogitChunk& chunk, const SoftmaxState& state, Range rows) {
  for (int64_t t = rows.first; t < rows.last; ++t) {
    const float* row = chunk.logits + t * chunk.columns;
    const float before = state.maximum[t];
    const float maximum = std::max(before, row_maximum(row, chunk.columns));
    // Before the first chunk there is nothing to rescale, and exp(-inf - -inf) would be NaN.
    const float rescale = state.sum[t] == 0.0f ? 0.0f : std::exp(before - maximum);
    state.sum[t] = state.sum[t] * rescale + row_sum_of_exp(row, maximum, chunk.columns);
    state.maximum[t] = maximum;
    const int64_t column = chunk.targets[t] - chunk.first_column;
    if (chunk.targets[t] >= 0 && column >= 0 && column < chunk.columns)
      state.target_logit[t] = row[column];
  }
}

template <class T>
HWY_INLINE void gradient(const LogitChunk& chunk, const SoftmaxState& state, T* out, Range rows) {
  for (int64_t t = rows.first; t < rows.last; ++t) {
    const float* row = chunk.logits + t * chunk.columns;
    T* out_row = out + t * chunk.columns;
    if (chunk.targets[t] < 0) {
      std::fill(out_row, out_row + chunk.columns, T{0});
      continue;
    }
    const auto shift = broadcast(state.maximum[t]);
    const auto scale = broadcast(1.0f / state.sum[t]);
    for_each_vector(chunk.columns, [=](size_t i, size_t n) VECTOR_BODY {
      store_first(hn::Mul(exp(hn::Sub(load_first(row + i, n), shift)), scale), out_row + i, n);
    });
    const int64_t column = chunk.targets[t] - chunk.first_column;
    if (column < 0 || column >= chunk.columns) continue;
    // From the unrounded probability: 1 - p of a well-predicted token would vanish in bf16.
    const float probability = std::exp(row[column] - state.maximum[t]) / state.sum[t];
    store_first(broadcast(probability - 1.0f), out_row + column, 1);
  }
}

void softmax_gradient_rows_impl(const LogitChunk& chunk, const SoftmaxState& state,
                                const Tensor& out, Range rows) {
  out.dtype == DType::kBF16 ? gradient(chunk, state, out.as<Bf16>(), rows)
                            : gradient(chunk, state, out.as<float>(), rows);
}

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashshard::cpu {

HWY_EXPORT(softmax_update_rows_impl);
HWY_EXPORT(softmax_gradient_rows_impl);

void softmax_update_rows(const LogitChunk& chunk, const SoftmaxState& state, Range rows) {
  HWY_DYNAMIC_DISPATCH(softmax_update_rows_impl)(chunk, state, rows);
}
void softmax_gradient_rows(const LogitChunk& chunk, const SoftmaxState& state, const Tensor& out,
                           Range rows) {
  HWY_DYNAMIC_DISPATCH(softmax_gradient_rows_impl)(chunk, state, out, rows);
}

}  // namespace flashshard::cpu
#endif
