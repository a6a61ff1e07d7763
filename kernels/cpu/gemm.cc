// Cuts a product into blocks, hands them to the pool, and runs OpenBLAS blocks with their operands
// widened to fp32.
#include "kernels/cpu/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <cassert>

#include "kernels/cpu/vector_kernels.h"
#include "kernels/error.h"

namespace flashshard::cpu {
namespace {

constexpr int64_t kBlockRows =
    128;  // efficient in both libraries, and fine enough to share among threads
constexpr int64_t kBlockColumns = 512;  // when there are fewer row blocks than kManyRowBlocks
constexpr int64_t kManyRowBlocks = 16;
constexpr int64_t kWideBlockColumns =
    2048;  // otherwise; with kBlockDepth it bounds the widened panels
constexpr int64_t kBlockDepth = 1024;

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

/// Even blocks, so that no thread ends with a crumb: a multiple of 16 unless the size itself is
/// smaller.
int64_t even_block(int64_t size, int64_t count) {
  return std::min(size, (blocks(size, count) + 15) / 16 * 16);
}

blasint blas(int64_t value) { return static_cast<blasint>(value); }

/// A stored matrix and the window of it that op() turns into a block.
struct Window {
  const Tensor& matrix;
  int64_t first_row, rows, first_column, columns;  // as stored

  int64_t stride() const { return matrix.shape[1]; }
  void* start() const {
    return static_cast<std::byte*>(matrix.data) +
           static_cast<size_t>(first_row * stride() + first_column) * size_of(matrix.dtype);
  }
};

Window window(const Tensor& matrix, bool transpose, int64_t row, int64_t rows, int64_t column,
              int64_t columns) {
  if (transpose) return {matrix, column, columns, row, rows};
  return {matrix, row, rows, column, columns};
}

/// fp32 operand of sgemm: the window itself, or its widened copy in `panel`.
struct Operand {
  const float* data;
  int64_t stride;
};

Operand widened(const Window& w, float* panel) {
  if (w.matrix.dtype == DType::kFP32) return {static_cast<const float*>(w.start()), w.stride()};
  const auto* from = static_cast<const uint16_t*>(w.start());
  if (w.columns == w.stride()) {
    widen(from, panel, w.rows * w.columns);
  } else {
    for (int64_t r = 0; r < w.rows; ++r)
      widen(from + r * w.stride(), panel + r * w.columns, w.columns);
  }
  return {panel, w.columns};
}

/// Rounds an fp32 block into its window of a bf16 result.
void write_block(const float* block, const Window& out, bool accumulate) {
  auto* to = static_cast<uint16_t*>(out.start());
  for (int64_t r = 0; r < out.rows; ++r) {
    const float* from = block + r * out.columns;
    accumulate ? add_rounded(from, to + r * out.stride(), DType::kBF16, out.columns)
               : narrow(from, to + r * out.stride(), out.columns);
  }
}

/// fp32 panels of one participant; empty where the operand is fp32 already. Sized by bounds that
/// grow with m, n and k, so that a call never needs more than a larger one.
struct Panels {
  Panels(const MatMul& call, const GemmShape& s, Workspace& workspace) {
    const int64_t rows = std::min(s.m, kBlockRows);
    const int64_t columns = std::min(s.n, kWideBlockColumns);
    const int64_t depth = std::min(s.k, kBlockDepth);
    const auto panel = [&](const Tensor& operand, int64_t elements) {
      return workspace.take<float>(operand.dtype == DType::kBF16 ? static_cast<size_t>(elements)
                                                                 : 0);
    };
    a = panel(call.a, rows * depth);
    b = panel(call.b, depth * columns);
    out = panel(call.out, rows * columns);
  }
  float *a, *b, *out;
};

/// Where a task's block lies in the result. Neighbouring tasks share their columns, hence the panel
/// of b.
struct Block {
  Block(const GemmShape& s, int64_t task)
      : row(task % s.row_blocks * s.block_rows),
        column(task / s.row_blocks * s.block_columns),
        rows(std::min(s.block_rows, s.m - row)),
        columns(std::min(s.block_columns, s.n - column)) {}
  int64_t row, column, rows, columns;
};

void run_openblas_block(const MatMul& call, const GemmShape& s, const Block& block, bool keep_b,
                        const Panels& panels) {
  const Window out = window(call.out, false, block.row, block.rows, block.column, block.columns);
  const bool direct = call.out.dtype == DType::kFP32;
  float* result = direct ? static_cast<float*>(out.start()) : panels.out;
  const int64_t result_stride = direct ? out.stride() : block.columns;
  for (int64_t k = 0; k < s.k; k += kBlockDepth) {
    const int64_t depth = std::min(kBlockDepth, s.k - k);
    const Operand a =
        widened(window(call.a, call.transpose_a, block.row, block.rows, k, depth), panels.a);
    const Window b_window = window(call.b, call.transpose_b, k, depth, block.column, block.columns);
    const bool b_is_there = keep_b && call.b.dtype == DType::kBF16;
    const Operand b =
        b_is_there ? Operand{panels.b, b_window.columns} : widened(b_window, panels.b);
    const bool add_to_result = k > 0 || (direct && call.accumulate);
    cblas_sgemm(CblasRowMajor, call.transpose_a ? CblasTrans : CblasNoTrans,
                call.transpose_b ? CblasTrans : CblasNoTrans, blas(block.rows), blas(block.columns),
                blas(depth), 1.0f, a.data, blas(a.stride), b.data, blas(b.stride),
                add_to_result ? 1.0f : 0.0f, result, blas(result_stride));
  }
  if (!direct) write_block(panels.out, out, call.accumulate);
}

void run_onednn_block(const MatMul& call, const GemmShape& s, const Block& block,
                      OneDnnMatMul& onednn) {
  const Window a = window(call.a, call.transpose_a, block.row, block.rows, 0, s.k);
  const Window b = window(call.b, call.transpose_b, 0, s.k, block.column, block.columns);
  const Window out = window(call.out, false, block.row, block.rows, block.column, block.columns);
  onednn.run({.m = block.rows,
              .n = block.columns,
              .k = s.k,
              .out = out.start(),
              .a = a.start(),
              .b = b.start(),
              .out_stride = out.stride(),
              .a_stride = a.stride(),
              .b_stride = b.stride(),
              .transpose_a = call.transpose_a,
              .transpose_b = call.transpose_b,
              .accumulate = call.accumulate,
              .out_dtype = call.out.dtype});
}

}  // namespace

GemmShape::GemmShape(const MatMul& call)
    : m(call.out.shape[0]), n(call.out.shape[1]), k(call.a.shape[call.transpose_a ? 0 : 1]) {
  assert(call.out.rank == 2 && call.a.rank == 2 && call.b.rank == 2);
  assert(call.a.shape[call.transpose_a ? 1 : 0] == m);
  assert(call.b.shape[call.transpose_b ? 0 : 1] == n &&
         call.b.shape[call.transpose_b ? 1 : 0] == k);
  block_rows = even_block(m, blocks(m, kBlockRows));
  row_blocks = blocks(m, block_rows);
  const int64_t widest = row_blocks >= kManyRowBlocks ? kWideBlockColumns : kBlockColumns;
  block_columns = even_block(n, blocks(n, widest));
  column_blocks = blocks(n, block_columns);
}

Gemm::Gemm(GemmLibrary library, int threads) : threads_(static_cast<size_t>(threads)) {
  openblas_set_num_threads(1);
  if (library == GemmLibrary::kOneDnn && !OneDnnMatMul::is_supported()) {
    throw Error(ExitCode::kUsage, "oneDNN cannot multiply bf16 here", "cpu backend",
                "this build or this processor lacks it; leave the choice to the backend");
  }
  if (library == GemmLibrary::kOpenBlas || !OneDnnMatMul::is_supported()) return;
  onednn_.resize(threads_);
}

bool Gemm::runs_in_onednn(const MatMul& call) const {
  return !onednn_.empty() && call.a.dtype == DType::kBF16 && call.b.dtype == DType::kBF16;
}

size_t Gemm::workspace_bytes(const MatMul& call) const {
  if (runs_in_onednn(call)) return 0;
  Workspace measure;
  const Panels one(call, GemmShape(call), measure);
  return measure.used() * threads_;
}

void Gemm::run(const MatMul& call, Workspace workspace, ThreadPool& pool) {
  const GemmShape shape(call);
  if (shape.m == 0 || shape.n == 0) return;
  if (runs_in_onednn(call)) {
    pool.run(shape.tasks(), [&](int64_t task, int participant) {
      run_onednn_block(call, shape, Block(shape, task), onednn_[static_cast<size_t>(participant)]);
    });
    return;
  }
  std::vector<Panels> panels;
  panels.reserve(threads_);
  std::vector<int64_t> column_in_panel(static_cast<size_t>(pool.threads()), -1);
  for (int p = 0; p < pool.threads(); ++p) panels.emplace_back(call, shape, workspace);
  pool.run(shape.tasks(), [&](int64_t task, int participant) {
    const auto p = static_cast<size_t>(participant);
    const Block block(shape, task);
    const bool keep_b = shape.k <= kBlockDepth && column_in_panel[p] == block.column;
    run_openblas_block(call, shape, block, keep_b, panels[p]);
    column_in_panel[p] = block.column;
  });
}

std::string Gemm::description() const {
  // OpenBLAS writes its text into one buffer at every call: ranks in threads would garble it.
  static const std::string openblas =
      std::string(openblas_get_config()) + " (" + openblas_get_corename() + ")";
  std::string text = openblas;
  if (!onednn_.empty()) text += ", " + OneDnnMatMul::version() + " for bf16";
  return text;
}

}  // namespace flashshard::cpu
