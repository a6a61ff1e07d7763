// How attention is cut into documents and these into tiles: the same numbers for the scratch size
// and for the loops.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"

namespace flashshard::cpu {

/// What a decoded token attends over: the cached tokens as one sequence.
inline AttentionShape shape_of(const AttentionDecode& call) {
  return {.sequences = 1,
          .sequence_length = call.keys_values.shape[0],
          .heads = call.heads,
          .kv_heads = call.kv_heads,
          .head_dim = call.head_dim};
}

struct AttentionGeometry {
  static constexpr int64_t kLargestTile = 64;

  explicit AttentionGeometry(const AttentionShape& shape)
      : sequence_length(shape.sequence_length),
        head_dim(shape.head_dim),
        padded_dim((head_dim + 15) / 16 * 16),
        tile(std::min(kLargestTile, (shape.sequence_length + 15) / 16 * 16)),
        tiles((shape.sequence_length + tile - 1) / tile),
        group(shape.heads / shape.kv_heads),
        query_width(int64_t{shape.heads} * shape.head_dim),
        qkv_width((shape.heads + int64_t{2} * shape.kv_heads) * shape.head_dim) {}

  int64_t panel() const { return tile * padded_dim; }  // elements of a head's tile
  int64_t square() const { return tile * tile; }       // elements of a tile of scores
  int64_t rows_from(int64_t index) const { return std::min(tile, sequence_length - index * tile); }
  /// The same with padding to whole registers of the tile products.
  int64_t padded_rows_from(int64_t index) const { return (rows_from(index) + 7) / 8 * 8; }

  int64_t sequence_length, head_dim, padded_dim;
  int64_t tile, tiles;  // rows of a tile, a multiple of 16; tiles of a sequence
  int64_t group;        // query heads that share a key/value head
  int64_t query_width, qkv_width;
};

/// One (sequence, key/value head): where its rows and heads start in the packed activations.
struct AttentionTask {
  AttentionTask(const AttentionShape& shape, const AttentionGeometry& g, int64_t task)
      : kv_head(task % shape.kv_heads),
        first_row(task / shape.kv_heads * shape.sequence_length),
        key_offset(g.query_width + kv_head * g.head_dim),
        value_offset(g.query_width + (shape.kv_heads + kv_head) * g.head_dim) {}

  int64_t kv_head, first_row;
  int64_t key_offset, value_offset;  // elements from the start of a row of q‖k‖v
};

/// Where the document ends that begins at `row`, a row of the sequence that ends before `end`.
inline int64_t end_of_document(const Tensor& document_starts, int64_t row, int64_t end) {
  if (!document_starts) return end;
  const auto* starts = document_starts.as<const int32_t>();
  return std::find_if(starts + row, starts + end,
                      [start = starts[row]](int32_t other) { return other != start; }) -
         starts;
}

/// Walks over the documents of the sequence that begins at row `first_row`; without
/// `document_starts` it is one. Each is a sequence of its own.
class Documents {
 public:
  Documents(const Tensor& document_starts, const AttentionShape& shape, int64_t first_row)
      : starts_(document_starts),
        shape_(shape),
        next_row_(first_row),
        end_(first_row + shape.sequence_length) {
    shape_.sequences = 1;
  }

  /// To the next document; false behind the last.
  bool next() {
    if (next_row_ >= end_) return false;
    row_ = next_row_;
    next_row_ = end_of_document(starts_, row_, end_);
    shape_.sequence_length = next_row_ - row_;
    return true;
  }
  int64_t first_row() const { return row_; }
  AttentionGeometry geometry() const { return AttentionGeometry(shape_); }

 private:
  const Tensor& starts_;
  AttentionShape shape_;
  int64_t row_ = 0, next_row_, end_;
};

}  // namespace flashshard::cpu
