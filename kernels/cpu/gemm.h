// Matrix products of the CPU backend. Products of bf16 by bf16 run in oneDNN where the processor
// multiplies bf16 natively; everything else runs in OpenBLAS, bf16 operands widened to fp32 block
// by block. Why: docs/cpu-backend.md.
//
// The result is cut into blocks whose sizes depend on the shape alone, and each block is one
// single-threaded call, so the bits do not depend on the number of threads.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/onednn_matmul.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/workspace.h"

namespace flashshard::cpu {

/// m x n x k and how the result is cut.
struct GemmShape {
  explicit GemmShape(const MatMul& call);
  int64_t tasks() const { return row_blocks * column_blocks; }

  int64_t m, n, k;
  int64_t row_blocks, column_blocks;
  int64_t block_rows, block_columns;
};

class Gemm {
 public:
  /// `threads` participants will call; see GemmLibrary for the errors.
  Gemm(GemmLibrary library, int threads);

  size_t workspace_bytes(const MatMul& call) const;
  void run(const MatMul& call, Workspace workspace, ThreadPool& pool);

  /// Libraries in use, with versions.
  std::string description() const;

 private:
  bool runs_in_onednn(const MatMul& call) const;

  size_t threads_;
  std::vector<OneDnnMatMul> onednn_;  // one per participant; empty when not used
};

}  // namespace flashshard::cpu
