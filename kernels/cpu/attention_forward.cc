// Causal attention forward in tiles with an online softmax (FlashAttention-2, arXiv 2307.08691),
// grouped key/value heads.
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_geometry.h"
#include "kernels/cpu/vector_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_forward.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashshard::cpu::HWY_NAMESPACE {

/// Scratch of one task; a panel is (tile, padded_dim).
struct ForwardScratch {
  ForwardScratch(const AttentionGeometry& g, float* memory)
      : keys_transposed(memory),
        values(keys_transposed + g.tiles * g.panel()),
        query(values + g.tiles * g.panel()),
        output(query + g.panel()),
        scores(output + g.panel()),
        maximum(scores + g.square()),
        sum(maximum + g.tile),
        rescale(sum + g.tile) {}

  float* keys_transposed;          // per tile (padded_dim, tile)
  float* values;                   // per tile a panel
  float* query;                    // a panel, scaled by 1/sqrt(D)
  float* output;                   // a panel
  float* scores;                   // (tile, tile)
  float *maximum, *sum, *rescale;  // per row of the query tile
};

/// New running maximum of every row; `rescale` = exp(old maximum - new maximum), 0 on the first
/// tile.
HWY_INLINE void update_maximum(const AttentionGeometry& g, const ForwardScratch& s, bool diagonal) {
  const auto step = static_cast<int64_t>(lanes());
  for (int64_t r = 0; r < g.tile; ++r) {
    float* row = s.scores + r * g.tile;
    if (diagonal) std::fill(row + r + 1, row + g.tile, -std::numeric_limits<float>::infinity());
    auto highest = load(row);
    for (int64_t c = step; c < g.tile; c += step) highest = hn::Max(highest, load(row + c));
    const float maximum = std::max(s.maximum[r], max_of_lanes(highest));
    s.rescale[r] = s.maximum[r] - maximum;
    s.maximum[r] = maximum;
  }
  for (int64_t r = 0; r < g.tile; r += step) store(exp(load(s.rescale + r)), s.rescale + r);
}

/// Scores become unnormalised probabilities; earlier sums and outputs are brought to the new
/// maximum.
HWY_INLINE void update_probabilities(const AttentionGeometry& g, const ForwardScratch& s) {
  const auto step = static_cast<int64_t>(lanes());
  for (int64_t r = 0; r < g.tile; ++r) {
    float* row = s.scores + r * g.tile;
    const auto shift = broadcast(s.maximum[r]);
    auto sum = zero();
    for (int64_t c = 0; c < g.tile; c += step) {
      const auto probability = exp(hn::Sub(load(row + c), shift));
      store(probability, row + c);
      sum = hn::Add(sum, probability);
    }
    s.sum[r] = s.sum[r] * s.rescale[r] + sum_of_lanes(sum);
    const auto factor = broadcast(s.rescale[r]);
    float* output = s.output + r * g.padded_dim;
    for (int64_t c = 0; c < g.padded_dim; c += step)
      store(hn::Mul(load(output + c), factor), output + c);
  }
}

/// One query tile of one head against all key tiles up to the diagonal.
HWY_NOINLINE void attend(const AttentionGeometry& g, const ForwardScratch& s, int64_t query_tile) {
  std::fill(s.maximum, s.maximum + g.tile, -std::numeric_limits<float>::infinity());
  std::fill(s.sum, s.sum + g.tile, 0.0f);
  std::fill(s.output, s.output + g.panel(), 0.0f);
  for (int64_t j = 0; j <= query_tile; ++j) {
    multiply_tile({s.query, g.padded_dim, 1}, s.keys_transposed + j * g.panel(), s.scores, g.tile,
                  g.tile, g.head_dim, false);
    update_maximum(g, s, j == query_tile);
    update_probabilities(g, s);
    multiply_tile({s.scores, g.tile, 1}, s.values + j * g.panel(), s.output, g.tile, g.padded_dim,
                  g.tile, true);
  }
}

template <class T>
HWY_NOINLINE void write_output(const AttentionForward& call, const AttentionGeometry& g,
                               const ForwardScratch& s, int64_t first_row, int64_t rows,
                               int64_t head) {
  for (int64_t r = 0; r < rows; ++r) {
    const auto inverse = broadcast(1.0f / s.sum[r]);
    const float* from = s.output + r * g.padded_dim;
    T* to = call.out.as<T>() + (first_row + r) * g.query_width + head * g.head_dim;
    for_each_vector(g.head_dim, [=](size_t i, size_t n) VECTOR_BODY {
      store_first(hn::Mul(load_first(from + i, n), inverse), to + i, n);
    });
    call.log_sum_exp.as<float>()[(first_row + r) * call.shape.heads + head] =
        s.maximum[r] + std::log(s.sum[r]);
  }
}

template <class T>
HWY_INLINE void forward(const AttentionForward& call, int64_t task, float* memory) {
  const AttentionGeometry g(call.shape);
  const AttentionTask place(call.shape, g, task);
  const ForwardScratch s(g, memory);
  const auto rows_at = [&](int64_t tile, int64_t offset) VECTOR_BODY {
    const int64_t row = place.first_row + tile * g.tile;
    return HeadRows<const T>{call.qkv.as<const T>() + row * g.qkv_width + offset, g.qkv_width,
                             g.rows_from(tile)};
  };
  for (int64_t j = 0; j < g.tiles; ++j) {
    pack(rows_at(j, place.key_offset), g, 1.0f, s.query);
    transpose(s.query, g.tile, g.padded_dim, s.keys_transposed + j * g.panel());
    pack(rows_at(j, place.value_offset), g, 1.0f, s.values + j * g.panel());
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(g.head_dim));
  for (int64_t h = 0; h < g.group; ++h) {
    const int64_t head = place.kv_head * g.group + h;
    for (int64_t i = 0; i < g.tiles; ++i) {
      pack(rows_at(i, head * g.head_dim), g, scale, s.query);
      attend(g, s, i);
      write_output<T>(call, g, s, place.first_row + i * g.tile, g.rows_from(i), head);
    }
  }
}

void attention_forward_task_impl(const AttentionForward& call, int64_t task, float* scratch) {
  call.qkv.dtype == DType::kBF16 ? forward<Bf16>(call, task, scratch)
                                 : forward<float>(call, task, scratch);
}

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashshard::cpu {

HWY_EXPORT(attention_forward_task_impl);

size_t attention_forward_scratch(const AttentionShape& shape) {
  const AttentionGeometry g(shape);
  return static_cast<size_t>((2 * g.tiles + 2) * g.panel() + g.square() + 3 * g.tile);
}

void attention_forward_task(const AttentionForward& call, int64_t task, float* scratch) {
  HWY_DYNAMIC_DISPATCH(attention_forward_task_impl)(call, task, scratch);
}

}  // namespace flashshard::cpu
#endif
