// The gradient sorts token positions by vocabulary row (a stable counting sort), so every row is
// summed in fp32 by one participant, in order of t, and rounded once.
#include "kernels/cpu/embedding.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "kernels/cpu/vector_kernels.h"

namespace flashshard::cpu {
namespace {

constexpr int64_t kRowsPerTask = 64;  // of the vocabulary

struct BackwardScratch {
  BackwardScratch(const EmbeddingBackward& call, int threads, Workspace& workspace)
      : width(call.grad_table.shape[1]),
        row_begin(workspace.take<int32_t>(static_cast<size_t>(call.grad_table.shape[0] + 1))),
        positions(workspace.take<int32_t>(static_cast<size_t>(call.tokens.shape[0]))),
        sums(workspace.take<float>(static_cast<size_t>(threads * width))) {}

  int64_t width;
  int32_t* row_begin;  // (V + 1): where each row's positions begin
  int32_t* positions;  // (T): token positions, by row, then in order of t
  float* sums;         // one row per participant
};

void sort_positions(const EmbeddingBackward& call, const BackwardScratch& s) {
  const int64_t vocabulary = call.grad_table.shape[0];
  const int64_t count = call.tokens.shape[0];
  const int32_t* tokens = call.tokens.as<const int32_t>();
  std::fill(s.row_begin, s.row_begin + vocabulary + 1, 0);
  for (int64_t t = 0; t < count; ++t) {
    assert(tokens[t] >= 0 && tokens[t] < vocabulary);
    ++s.row_begin[tokens[t] + 1];
  }
  for (int64_t v = 0; v < vocabulary; ++v) s.row_begin[v + 1] += s.row_begin[v];
  for (int64_t t = 0; t < count; ++t)
    s.positions[s.row_begin[tokens[t]]++] = static_cast<int32_t>(t);
  // Every entry now stands at its row's end, which is the next row's begin.
  std::memmove(s.row_begin + 1, s.row_begin, static_cast<size_t>(vocabulary) * sizeof(int32_t));
  s.row_begin[0] = 0;
}

void add_row(const EmbeddingBackward& call, const BackwardScratch& s, int64_t row, float* sum) {
  const int32_t begin = s.row_begin[row];
  const int32_t end = s.row_begin[row + 1];
  if (begin == end) return;
  std::fill(sum, sum + s.width, 0.0f);
  for (int32_t i = begin; i < end; ++i) {
    add_widened(call.grad_out.row_range(s.positions[i], 1).data, call.grad_out.dtype, sum, s.width);
  }
  add_rounded(sum, call.grad_table.row_range(row, 1).data, call.grad_table.dtype, s.width);
}

}  // namespace

void embedding_forward(const EmbeddingForward& call, ThreadPool& pool) {
  assert(call.out.dtype == call.table.dtype && call.out.shape[1] == call.table.shape[1]);
  const size_t row_bytes = static_cast<size_t>(call.table.shape[1]) * size_of(call.table.dtype);
  const int32_t* tokens = call.tokens.as<const int32_t>();
  const auto* table = static_cast<const std::byte*>(call.table.data);
  auto* out = static_cast<std::byte*>(call.out.data);
  pool.run_ranges(call.tokens.shape[0], [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      assert(tokens[t] >= 0 && tokens[t] < call.table.shape[0]);
      std::memcpy(out + static_cast<size_t>(t) * row_bytes,
                  table + static_cast<size_t>(tokens[t]) * row_bytes, row_bytes);
    }
  });
}

size_t embedding_backward_workspace(const EmbeddingBackward& call, int threads) {
  Workspace measure;
  const BackwardScratch scratch(call, threads, measure);
  return measure.used();
}

void embedding_backward(const EmbeddingBackward& call, Workspace workspace, ThreadPool& pool) {
  assert(call.grad_out.shape[1] == call.grad_table.shape[1]);
  assert(call.grad_out.shape[0] == call.tokens.shape[0]);
  const BackwardScratch s(call, pool.threads(), workspace);
  sort_positions(call, s);
  const int64_t vocabulary = call.grad_table.shape[0];
  pool.run((vocabulary + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int participant) {
    const int64_t last = std::min(vocabulary, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < last; ++row) {
      add_row(call, s, row, s.sums + participant * s.width);
    }
  });
}

}  // namespace flashshard::cpu
