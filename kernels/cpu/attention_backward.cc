// Causal attention backward in tiles (FlashAttention-2, arXiv 2307.08691): probabilities are
// rebuilt from the stored log-sum-exp. With S = scaled q k^T, P = exp(S - lse), delta = rowsum(dO *
// O):
//   dV = P^T dO,  dP = dO V^T,  dS = P * (dP - delta),  dQ = dS K / sqrt(D),  dK = dS^T (q /
//   sqrt(D)).
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_geometry.h"
#include "kernels/cpu/vector_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_backward.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashshard::cpu::HWY_NAMESPACE {

/// Scratch of one task. The first five hold a whole sequence, tile after tile; a panel is (tile,
/// padded_dim).
struct BackwardScratch {
  BackwardScratch(const AttentionGeometry& g, float* memory)
      : keys(memory),
        keys_transposed(keys + g.tiles * g.panel()),
        values_transposed(keys_transposed + g.tiles * g.panel()),
        grad_keys(values_transposed + g.tiles * g.panel()),
        grad_values(grad_keys + g.tiles * g.panel()),
        query(grad_values + g.tiles * g.panel()),
        grad_query(query + g.panel()),
        grad_output(grad_query + g.panel()),
        output(grad_output + g.panel()),
        probabilities(output + g.panel()),
        grad_scores(probabilities + g.square()),
        log_sum_exp(grad_scores + g.square()),
        delta(log_sum_exp + g.tile) {}

  float *keys, *keys_transposed, *values_transposed;
  float *grad_keys, *grad_values;  // fp32 sums over the query heads of the group
  float *query, *grad_query;       // query scaled by 1/sqrt(D)
  float *grad_output, *output;
  float *probabilities, *grad_scores;  // (tile, tile)
  float *log_sum_exp, *delta;          // per row of the query tile
};

/// probabilities = exp(scores - lse), 0 above the diagonal; grad_scores = probabilities *
/// (grad_probabilities - delta). What lies far above the diagonal was not computed and is not read.
HWY_INLINE void differentiate_softmax(const AttentionGeometry& g, const BackwardScratch& s,
                                      int64_t rows, bool diagonal) {
  const auto step = static_cast<int64_t>(lanes());
  for (int64_t r = 0; r < rows; ++r) {
    float* probabilities = s.probabilities + r * g.tile;
    float* gradients = s.grad_scores + r * g.tile;
    if (diagonal) {
      std::fill(probabilities + r + 1, probabilities + g.tile,
                -std::numeric_limits<float>::infinity());
    }
    const auto shift = broadcast(s.log_sum_exp[r]);
    const auto delta = broadcast(s.delta[r]);
    for (int64_t c = 0; c < g.tile; c += step) {
      const auto probability = exp(hn::Sub(load(probabilities + c), shift));
      store(probability, probabilities + c);
      store(hn::Mul(probability, hn::Sub(load(gradients + c), delta)), gradients + c);
    }
  }
}

/// Gradients that one query tile of one head gives to and gets from the key tiles up to the
/// diagonal.
HWY_NOINLINE void attend_backward(const AttentionGeometry& g, const BackwardScratch& s,
                                  int64_t query_tile) {
  std::fill(s.grad_query, s.grad_query + g.panel(), 0.0f);
  const int64_t rows = g.padded_rows_from(query_tile);
  for (int64_t j = 0; j <= query_tile; ++j) {
    const int64_t panel = j * g.panel();
    const bool diagonal = j == query_tile;
    const Skip scores = diagonal ? Skip::kColumnsAfterRow : Skip::kNothing;
    const Skip transposed = diagonal ? Skip::kDepthBeforeRow : Skip::kNothing;
    multiply_tile({s.query, g.padded_dim, 1}, s.keys_transposed + panel, s.probabilities, rows,
                  g.tile, g.head_dim, false, scores);
    multiply_tile({s.grad_output, g.padded_dim, 1}, s.values_transposed + panel, s.grad_scores,
                  rows, g.tile, g.head_dim, false, scores);
    differentiate_softmax(g, s, rows, diagonal);
    multiply_tile({s.probabilities, 1, g.tile}, s.grad_output, s.grad_values + panel, g.tile,
                  g.padded_dim, rows, true, transposed);
    multiply_tile({s.grad_scores, 1, g.tile}, s.query, s.grad_keys + panel, g.tile, g.padded_dim,
                  rows, true, transposed);
    multiply_tile({s.grad_scores, g.tile, 1}, s.keys + panel, s.grad_query, rows, g.padded_dim,
                  g.tile, true, diagonal ? Skip::kDepthAfterRow : Skip::kNothing);
  }
}

/// delta = rowsum(grad_output * output). Padded rows get lse = infinity, hence probability 0.
HWY_NOINLINE void load_row_statistics(const AttentionBackward& call, const AttentionGeometry& g,
                                      const BackwardScratch& s, int64_t first_row, int64_t rows,
                                      int64_t head) {
  const auto step = static_cast<int64_t>(lanes());
  for (int64_t r = 0; r < g.tile; ++r) {
    const float* grad_output = s.grad_output + r * g.padded_dim;
    const float* output = s.output + r * g.padded_dim;
    auto sum = zero();
    for (int64_t c = 0; c < g.padded_dim; c += step) {
      sum = hn::MulAdd(load(grad_output + c), load(output + c), sum);
    }
    s.delta[r] = sum_of_lanes(sum);
    s.log_sum_exp[r] =
        r < rows ? call.log_sum_exp.as<const float>()[(first_row + r) * call.shape.heads + head]
                 : std::numeric_limits<float>::infinity();
  }
}

template <class T>
HWY_INLINE void pack_keys_and_values(const AttentionBackward& call, const AttentionGeometry& g,
                                     const AttentionTask& place, int64_t first_row,
                                     const BackwardScratch& s) {
  for (int64_t j = 0; j < g.tiles; ++j) {
    const T* row = call.qkv.as<const T>() + (first_row + j * g.tile) * g.qkv_width;
    const int64_t panel = j * g.panel();
    pack<T>({row + place.key_offset, g.qkv_width, g.rows_from(j)}, g, 1.0f, s.keys + panel);
    transpose(s.keys + panel, g.tile, g.padded_dim, s.keys_transposed + panel);
    pack<T>({row + place.value_offset, g.qkv_width, g.rows_from(j)}, g, 1.0f, s.query);
    transpose(s.query, g.tile, g.padded_dim, s.values_transposed + panel);
  }
  const int64_t sequence = g.tiles * g.panel();
  std::fill(s.grad_keys, s.grad_keys + sequence, 0.0f);
  std::fill(s.grad_values, s.grad_values + sequence, 0.0f);
}

template <class T>
HWY_INLINE void backward_query_tile(const AttentionBackward& call, const AttentionGeometry& g,
                                    const BackwardScratch& s, int64_t first_row, int64_t tile,
                                    int64_t head) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(g.head_dim));
  const int64_t rows = g.rows_from(tile);
  const int64_t query = first_row * g.qkv_width + head * g.head_dim;
  const int64_t output = first_row * g.query_width + head * g.head_dim;
  pack<T>({call.qkv.as<const T>() + query, g.qkv_width, rows}, g, scale, s.query);
  pack<T>({call.grad_out.as<const T>() + output, g.query_width, rows}, g, 1.0f, s.grad_output);
  pack<T>({call.out.as<const T>() + output, g.query_width, rows}, g, 1.0f, s.output);
  load_row_statistics(call, g, s, first_row, rows, head);
  attend_backward(g, s, tile);
  unpack<T>(s.grad_query, g, scale, {call.grad_qkv.as<T>() + query, g.qkv_width, rows});
}

/// The document of rows first_row ... whose geometry is `g`.
template <class T>
HWY_NOINLINE void backward_document(const AttentionBackward& call, const AttentionGeometry& g,
                                    const AttentionTask& place, int64_t first_row, float* memory) {
  const BackwardScratch s(g, memory);
  pack_keys_and_values<T>(call, g, place, first_row, s);
  for (int64_t h = 0; h < g.group; ++h) {
    for (int64_t i = 0; i < g.tiles; ++i) {
      backward_query_tile<T>(call, g, s, first_row + i * g.tile, i, place.kv_head * g.group + h);
    }
  }
  for (int64_t j = 0; j < g.tiles; ++j) {
    T* row = call.grad_qkv.as<T>() + (first_row + j * g.tile) * g.qkv_width;
    const int64_t rows = g.rows_from(j);
    unpack<T>(s.grad_keys + j * g.panel(), g, 1.0f, {row + place.key_offset, g.qkv_width, rows});
    unpack<T>(s.grad_values + j * g.panel(), g, 1.0f,
              {row + place.value_offset, g.qkv_width, rows});
  }
}

template <class T>
HWY_INLINE void backward(const AttentionBackward& call, int64_t task, float* memory) {
  const AttentionTask place(call.shape, AttentionGeometry(call.shape), task);
  Documents documents(call.document_starts, call.shape, place.first_row);
  while (documents.next()) {
    backward_document<T>(call, documents.geometry(), place, documents.first_row(), memory);
  }
}

void attention_backward_task_impl(const AttentionBackward& call, int64_t task, float* scratch) {
  call.qkv.dtype == DType::kBF16 ? backward<Bf16>(call, task, scratch)
                                 : backward<float>(call, task, scratch);
}

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashshard::cpu {

HWY_EXPORT(attention_backward_task_impl);

size_t attention_backward_scratch(const AttentionShape& shape) {
  const AttentionGeometry g(shape);
  return static_cast<size_t>((5 * g.tiles + 4) * g.panel() + 2 * g.square() + 2 * g.tile);
}

void attention_backward_task(const AttentionBackward& call, int64_t task, float* scratch) {
  HWY_DYNAMIC_DISPATCH(attention_backward_task_impl)(call, task, scratch);
}

}  // namespace flashshard::cpu
#endif
