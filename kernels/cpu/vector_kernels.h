// The vectorised loops of the CPU backend, compiled for several instruction sets and dispatched at
// run time. Each works on the rows (or tasks) [first, last) it is given; rows do not depend on each
// other, so any partition gives the same bits. Shapes and formulas: kernels/backend.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/backend.h"

namespace flashshard::cpu {

struct Range {
  int64_t first = 0, last = 0;
};

/// Instruction set in use, e.g. "AVX3" (AVX-512), "AVX2", "SSE2", "NEON".
std::string_view instruction_set();

// Conversions (conversion.cc). bf16 results are rounded to nearest even.
void widen(const void* bf16, float* out, int64_t count);
void narrow(const float* from, void* bf16, int64_t count);
/// out += from, fp32 with `from` bf16 or fp32.
void add_widened(const void* from, DType from_dtype, float* out, int64_t count);
/// out = round(out + from), one rounding, `out` bf16 or fp32.
void add_rounded(const float* from, void* out, DType out_dtype, int64_t count);

// rmsnorm.cc
void rmsnorm_rows(const RmsNormForward& call, Range rows);
/// Writes grad_x of the rows; adds the rows' share of grad_weight to weight_sum (H).
void rmsnorm_backward_rows(const RmsNormBackward& call, Range rows, float* weight_sum);

// rope.cc, swiglu.cc
void rope_rows(const Rope& call, Range rows);
void swiglu_rows(const SwiGluForward& call, Range rows);
void swiglu_backward_rows(const SwiGluBackward& call, Range rows);

// attention_forward.cc, attention_backward.cc: one task per (sequence, key/value head), in that
// order; scratch holds attention_*_scratch floats, aligned to 64 bytes, for one participant. A
// decoded token is one sequence.
size_t attention_forward_scratch(const AttentionShape& shape);
size_t attention_decode_scratch(const AttentionDecode& call);
size_t attention_backward_scratch(const AttentionShape& shape);
void attention_forward_task(const AttentionForward& call, int64_t task, float* scratch);
void attention_decode_task(const AttentionDecode& call, int64_t task, float* scratch);
void attention_backward_task(const AttentionBackward& call, int64_t task, float* scratch);

// softmax.cc: a chunk of the vocabulary's logits, (rows, columns) fp32, columns starting at
// `first_column`.
struct LogitChunk {
  const float* logits = nullptr;
  int64_t first_column = 0, columns = 0;
  const int32_t* targets = nullptr;  // of the chunk's rows; below 0: not counted
};
/// Online log-sum-exp per row: running maximum and sum of exp(logit - maximum), and the target's
/// logit when its column is in this chunk. Start with maximum = -infinity, sum = 0.
struct SoftmaxState {
  float* maximum = nullptr;
  float* sum = nullptr;
  float* target_logit = nullptr;
};
void softmax_update_rows(const LogitChunk& chunk, const SoftmaxState& state, Range rows);
/// grad_logits = softmax(logits) - one_hot(target), zero for rows that are not counted; `out`
/// (rows, columns) bf16 or fp32.
void softmax_gradient_rows(const LogitChunk& chunk, const SoftmaxState& state, const Tensor& out,
                           Range rows);

}  // namespace flashshard::cpu
