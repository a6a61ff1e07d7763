// Causal attention forward in tiles with an online softmax (FlashAttention-2, arXiv 2307.08691),
// grouped key/value heads: for whole sequences, and for one token against a cache, where the rows
// of a tile are the query heads that share a key/value head.
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
  /// Holds the keys and values of `tiles` tiles.
  ForwardScratch(const AttentionGeometry& g, int64_t tiles, float* memory)
      : keys_transposed(memory),
        values(keys_transposed + tiles * g.panel()),
        query(values + tiles * g.panel()),
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

/// The part of a tile of scores that is used: its first `rows` rows, a multiple of 8 (beyond the
/// queries of a sequence's last tile they are padding), and in each the columns of keys that the
/// query sees.
struct ScoreWindow {
  int64_t rows;
  int64_t columns_of_first_row;
  bool diagonal;  // every further row sees one column more; otherwise all see the same

  int64_t columns(int64_t row) const { return columns_of_first_row + (diagonal ? row : 0); }
};

/// New running maximum of every row; `rescale` = exp(old maximum - new maximum), 0 on the first
/// tile.
HWY_INLINE void update_maximum(const AttentionGeometry& g, const ForwardScratch& s,
                               const ScoreWindow& window) {
  const auto step = static_cast<int64_t>(lanes());
  for (int64_t r = 0; r < window.rows; ++r) {
    float* row = s.scores + r * g.tile;
    std::fill(row + window.columns(r), row + g.tile, -std::numeric_limits<float>::infinity());
    auto highest = load(row);
    for (int64_t c = step; c < g.tile; c += step) highest = hn::Max(highest, load(row + c));
    const float maximum = std::max(s.maximum[r], max_of_lanes(highest));
    s.rescale[r] = s.maximum[r] - maximum;
    s.maximum[r] = maximum;
  }
  for (int64_t r = 0; r < window.rows; r += step) store(exp(load(s.rescale + r)), s.rescale + r);
}

/// Scores become unnormalised probabilities; earlier sums and outputs are brought to the new
/// maximum.
HWY_INLINE void update_probabilities(const AttentionGeometry& g, const ForwardScratch& s,
                                     int64_t rows) {
  const auto step = static_cast<int64_t>(lanes());
  for (int64_t r = 0; r < rows; ++r) {
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

HWY_INLINE void begin_rows(const AttentionGeometry& g, const ForwardScratch& s) {
  std::fill(s.maximum, s.maximum + g.tile, -std::numeric_limits<float>::infinity());
  std::fill(s.sum, s.sum + g.tile, 0.0f);
  std::fill(s.rescale, s.rescale + g.tile, 0.0f);
  std::fill(s.output, s.output + g.panel(), 0.0f);
}

/// The queries against one tile of keys and values.
HWY_INLINE void attend_to_tile(const AttentionGeometry& g, const ForwardScratch& s,
                               const float* keys_transposed, const float* values,
                               const ScoreWindow& window) {
  multiply_tile({s.query, g.padded_dim, 1}, keys_transposed, s.scores, window.rows, g.tile,
                g.head_dim, false, window.diagonal ? Skip::kColumnsAfterRow : Skip::kNothing);
  update_maximum(g, s, window);
  update_probabilities(g, s, window.rows);
  multiply_tile({s.scores, g.tile, 1}, values, s.output, window.rows, g.padded_dim, g.tile, true,
                window.diagonal ? Skip::kDepthAfterRow : Skip::kNothing);
}

/// One query tile of one head against all key tiles up to the diagonal.
HWY_NOINLINE void attend(const AttentionGeometry& g, const ForwardScratch& s, int64_t query_tile) {
  begin_rows(g, s);
  const int64_t rows = g.padded_rows_from(query_tile);
  for (int64_t j = 0; j <= query_tile; ++j) {
    const ScoreWindow window =
        j == query_tile ? ScoreWindow{rows, 1, true} : ScoreWindow{rows, g.tile, false};
    attend_to_tile(g, s, s.keys_transposed + j * g.panel(), s.values + j * g.panel(), window);
  }
}

/// Row r of the output panel, normalised and rounded once.
template <class T>
HWY_INLINE void write_row(const AttentionGeometry& g, const ForwardScratch& s, int64_t r, T* to) {
  const auto inverse = broadcast(1.0f / s.sum[r]);
  const float* from = s.output + r * g.padded_dim;
  for_each_vector(g.head_dim, [=](size_t i, size_t n) VECTOR_BODY {
    store_first(hn::Mul(load_first(from + i, n), inverse), to + i, n);
  });
}

template <class T>
HWY_NOINLINE void write_output(const AttentionForward& call, const AttentionGeometry& g,
                               const ForwardScratch& s, int64_t first_row, int64_t rows,
                               int64_t head) {
  for (int64_t r = 0; r < rows; ++r) {
    write_row(g, s, r, call.out.as<T>() + (first_row + r) * g.query_width + head * g.head_dim);
    call.log_sum_exp.as<float>()[(first_row + r) * call.shape.heads + head] =
        s.maximum[r] + std::log(s.sum[r]);
  }
}

/// The document of rows first_row ... whose geometry is `g`.
template <class T>
HWY_NOINLINE void forward_document(const AttentionForward& call, const AttentionGeometry& g,
                                   const AttentionTask& place, int64_t first_row, float* memory) {
  const ForwardScratch s(g, g.tiles, memory);
  const auto rows_at = [&](int64_t tile, int64_t offset) VECTOR_BODY {
    const int64_t row = first_row + tile * g.tile;
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
      write_output<T>(call, g, s, first_row + i * g.tile, g.rows_from(i), head);
    }
  }
}

template <class T>
HWY_INLINE void forward(const AttentionForward& call, int64_t task, float* memory) {
  const AttentionTask place(call.shape, AttentionGeometry(call.shape), task);
  Documents documents(call.document_starts, call.shape, place.first_row);
  while (documents.next()) {
    forward_document<T>(call, documents.geometry(), place, documents.first_row(), memory);
  }
}

/// Query heads [first_head, first_head + heads) of the task's key/value head against the whole
/// cache, tile by tile.
template <class T>
HWY_NOINLINE void decode_heads(const AttentionDecode& call, const AttentionGeometry& g,
                               const ForwardScratch& s, int64_t kv_head, int64_t first_head,
                               int64_t heads) {
  const T* queries = call.qkv.as<const T>() + first_head * g.head_dim;
  T* out = call.out.as<T>() + first_head * g.head_dim;
  const int64_t cache_width = call.keys_values.shape[1];
  const auto rows_at = [&](int64_t tile, int64_t head) VECTOR_BODY {
    const T* row = call.keys_values.as<const T>() + tile * g.tile * cache_width;
    return HeadRows<const T>{row + head * g.head_dim, cache_width, g.rows_from(tile)};
  };
  begin_rows(g, s);
  pack(HeadRows<const T>{queries, g.head_dim, heads}, g,
       1.0f / std::sqrt(static_cast<float>(g.head_dim)), s.query);
  for (int64_t j = 0; j < g.tiles; ++j) {
    pack(rows_at(j, kv_head), g, 1.0f, s.values);
    transpose(s.values, g.tile, g.padded_dim, s.keys_transposed);
    pack(rows_at(j, call.kv_heads + kv_head), g, 1.0f, s.values);
    attend_to_tile(g, s, s.keys_transposed, s.values, {(heads + 7) / 8 * 8, g.rows_from(j), false});
  }
  for (int64_t r = 0; r < heads; ++r) write_row(g, s, r, out + r * g.head_dim);
}

template <class T>
HWY_INLINE void decode(const AttentionDecode& call, int64_t kv_head, float* memory) {
  const AttentionGeometry g(shape_of(call));
  const ForwardScratch s(g, 1, memory);
  for (int64_t h = 0; h < g.group; h += g.tile) {
    decode_heads<T>(call, g, s, kv_head, kv_head * g.group + h, std::min(g.tile, g.group - h));
  }
}

void attention_decode_task_impl(const AttentionDecode& call, int64_t task, float* scratch) {
  call.qkv.dtype == DType::kBF16 ? decode<Bf16>(call, task, scratch)
                                 : decode<float>(call, task, scratch);
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
HWY_EXPORT(attention_decode_task_impl);

namespace {
size_t scratch_floats(const AttentionGeometry& g, int64_t tiles) {
  return static_cast<size_t>((2 * tiles + 2) * g.panel() + g.square() + 3 * g.tile);
}
}  // namespace

size_t attention_forward_scratch(const AttentionShape& shape) {
  const AttentionGeometry g(shape);
  return scratch_floats(g, g.tiles);
}

size_t attention_decode_scratch(const AttentionDecode& call) {
  return scratch_floats(AttentionGeometry(shape_of(call)), 1);
}

void attention_forward_task(const AttentionForward& call, int64_t task, float* scratch) {
  HWY_DYNAMIC_DISPATCH(attention_forward_task_impl)(call, task, scratch);
}

void attention_decode_task(const AttentionDecode& call, int64_t task, float* scratch) {
  HWY_DYNAMIC_DISPATCH(attention_decode_task_impl)(call, task, scratch);
}

}  // namespace flashshard::cpu
#endif
