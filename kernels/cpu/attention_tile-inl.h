// Tiles of attention: the small fp32 product kernel, packing of heads into padded fp32 panels,
// transposition.
//
// Everything is padded with zeros, the head dimension to a multiple of 16 and the sequence to whole
// tiles, so no kernel has a remainder. Included once per instruction set.
#if defined(FLASHSHARD_KERNELS_CPU_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHSHARD_KERNELS_CPU_ATTENTION_TILE_INL_H_
#undef FLASHSHARD_KERNELS_CPU_ATTENTION_TILE_INL_H_
#else
#define FLASHSHARD_KERNELS_CPU_ATTENTION_TILE_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "kernels/cpu/attention_geometry.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashshard::cpu::HWY_NAMESPACE {

/// A left operand whose rows and columns lie any distance apart, so a transposed tile needs no
/// copy.
struct LeftOperand {
  const float* data;
  int64_t row_stride, column_stride;
};

/// Accumulators held in registers: 32 vector registers on AVX-512, 16 on most others.
inline constexpr int kRegisterRows = kMaxLanes >= 16 ? 8 : 4;

/// What a product over a tile of the diagonal leaves out, where (i, j) with j > i is masked:
/// nothing of it is read later, or it is a factor 0.
enum class Skip : uint8_t {
  kNothing,
  kColumnsAfterRow,  // c(i, j): scores
  kDepthAfterRow,    // a(i, j): probabilities times values
  kDepthBeforeRow,   // a(j, i): the same transposed
};

/// c[kRegisterRows, kVectors vectors] (+)= a * b over the depths [first, last); b and c row-major.
template <int kVectors>
HWY_INLINE void multiply_registers(LeftOperand a, const float* HWY_RESTRICT b, int64_t b_stride,
                                   float* HWY_RESTRICT c, int64_t c_stride, int64_t first,
                                   int64_t last, bool accumulate) {
  const auto width = static_cast<int64_t>(lanes());
  FloatVector sum[kRegisterRows][kVectors];
  HWY_UNROLL(8)
  for (int r = 0; r < kRegisterRows; ++r) {
    HWY_UNROLL(2)
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = accumulate ? load(c + r * c_stride + v * width) : zero();
    }
  }
  for (int64_t k = first; k < last; ++k) {
    FloatVector right[kVectors];
    HWY_UNROLL(2)
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + k * b_stride + v * width);
    const float* left = a.data + k * a.column_stride;
    HWY_UNROLL(8)
    for (int r = 0; r < kRegisterRows; ++r) {
      const auto value = broadcast(left[r * a.row_stride]);
      HWY_UNROLL(2)
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(value, right[v], sum[r][v]);
    }
  }
  HWY_UNROLL(8)
  for (int r = 0; r < kRegisterRows; ++r) {
    HWY_UNROLL(2)
    for (int v = 0; v < kVectors; ++v) store(sum[r][v], c + r * c_stride + v * width);
  }
}

/// Columns [column, column + kVectors vectors) of a product, a few rows at a time.
template <int kVectors>
HWY_INLINE void multiply_columns(LeftOperand a, const float* b, float* c, int64_t column,
                                 int64_t rows, int64_t columns, int64_t depth, bool accumulate,
                                 Skip skip) {
  // Rows before this one have all of these columns masked.
  const int64_t first_row =
      skip == Skip::kColumnsAfterRow ? column / kRegisterRows * kRegisterRows : 0;
  for (int64_t r = first_row; r < rows; r += kRegisterRows) {
    const int64_t first = skip == Skip::kDepthBeforeRow ? std::min(r, depth) : 0;
    const int64_t last = skip == Skip::kDepthAfterRow ? std::min(r + kRegisterRows, depth) : depth;
    multiply_registers<kVectors>({a.data + r * a.row_stride, a.row_stride, a.column_stride},
                                 b + column, columns, c + r * columns + column, columns, first,
                                 last, accumulate);
  }
}

/// c (rows, columns) (+)= a (rows, depth) * b (depth, columns); rows a multiple of 8, columns of
/// 16; b and c contiguous.
static HWY_NOINLINE void multiply_tile(LeftOperand a, const float* b, float* c, int64_t rows,
                                       int64_t columns, int64_t depth, bool accumulate,
                                       Skip skip = Skip::kNothing) {
  const auto width = static_cast<int64_t>(lanes());
  int64_t column = 0;
  for (; column + 2 * width <= columns; column += 2 * width) {
    multiply_columns<2>(a, b, c, column, rows, columns, depth, accumulate, skip);
  }
  for (; column < columns; column += width) {
    multiply_columns<1>(a, b, c, column, rows, columns, depth, accumulate, skip);
  }
}

/// Where one head's rows lie in a packed activation.
template <class T>
struct HeadRows {
  T* data;
  int64_t stride;  // elements between rows
  int64_t rows;    // valid ones
};

/// panel (tile, padded_dim) = head * scale, zero where there is no element.
template <class T>
HWY_NOINLINE void pack(HeadRows<const T> head, const AttentionGeometry& g, float scale,
                       float* panel) {
  const auto factor = broadcast(scale);
  for (int64_t r = 0; r < g.tile; ++r) {
    float* to = panel + r * g.padded_dim;
    if (r >= head.rows) {
      std::fill(to, to + g.padded_dim, 0.0f);
      continue;
    }
    const T* from = head.data + r * head.stride;
    for_each_vector(g.head_dim, [=](size_t i, size_t n) VECTOR_BODY {
      store_first(hn::Mul(load_first(from + i, n), factor), to + i, n);
    });
    std::fill(to + g.head_dim, to + g.padded_dim, 0.0f);
  }
}

/// head = panel * scale, rounded once.
template <class T>
HWY_NOINLINE void unpack(const float* panel, const AttentionGeometry& g, float scale,
                         HeadRows<T> head) {
  const auto factor = broadcast(scale);
  for (int64_t r = 0; r < std::min(g.tile, head.rows); ++r) {
    const float* from = panel + r * g.padded_dim;
    T* to = head.data + r * head.stride;
    for_each_vector(g.head_dim, [=](size_t i, size_t n) VECTOR_BODY {
      store_first(hn::Mul(load_first(from + i, n), factor), to + i, n);
    });
  }
}

/// to (columns, rows) = from (rows, columns) transposed; both multiples of 4.
static HWY_NOINLINE void transpose(const float* HWY_RESTRICT from, int64_t rows, int64_t columns,
                                   float* HWY_RESTRICT to) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * rows + r] = from[r * columns + c];
  }
#else
  const hn::FixedTag<float, 4> four;
  const hn::FixedTag<double, 2> pairs;
  for (int64_t r = 0; r < rows; r += 4) {
    for (int64_t c = 0; c < columns; c += 4) {
      const float* source = from + r * columns + c;
      const auto a = hn::LoadU(four, source);
      const auto b = hn::LoadU(four, source + columns);
      const auto e = hn::LoadU(four, source + 2 * columns);
      const auto f = hn::LoadU(four, source + 3 * columns);
      const auto ab_low = hn::BitCast(pairs, hn::InterleaveLower(four, a, b));
      const auto ab_high = hn::BitCast(pairs, hn::InterleaveUpper(four, a, b));
      const auto ef_low = hn::BitCast(pairs, hn::InterleaveLower(four, e, f));
      const auto ef_high = hn::BitCast(pairs, hn::InterleaveUpper(four, e, f));
      float* target = to + c * rows + r;
      hn::StoreU(hn::BitCast(four, hn::InterleaveLower(pairs, ab_low, ef_low)), four, target);
      hn::StoreU(hn::BitCast(four, hn::InterleaveUpper(pairs, ab_low, ef_low)), four,
                 target + rows);
      hn::StoreU(hn::BitCast(four, hn::InterleaveLower(pairs, ab_high, ef_high)), four,
                 target + 2 * rows);
      hn::StoreU(hn::BitCast(four, hn::InterleaveUpper(pairs, ab_high, ef_high)), four,
                 target + 3 * rows);
    }
  }
#endif
}

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
