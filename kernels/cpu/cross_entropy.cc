// A vocabulary of one chunk takes one pass. A larger one takes two: the first finds every token's
// log-sum-exp chunk by chunk (arXiv 1805.02867), the second computes the logits again, turns them
// into gradients and finishes the weight gradient of one chunk before the next. Sums over several
// products stay in fp32 and are rounded once.
#include "kernels/cpu/cross_entropy.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

#include "kernels/cpu/vector_kernels.h"

namespace flashshard::cpu {
namespace {

constexpr int64_t kSingleChunk = 8192;     // vocabularies up to this take one pass
constexpr int64_t kChunk = 4096;           // columns of a chunk otherwise
constexpr int64_t kLogitBytes = 16 << 20;  // of logits and their gradients together

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

/// How tokens and vocabulary are cut; depends on shapes alone.
struct Plan {
  explicit Plan(const CrossEntropy& call)
      : tokens(call.hidden.shape[0]),
        vocabulary(call.weight.shape[0]),
        width(call.hidden.shape[1]),
        with_gradients(call.grad_hidden.elements() > 0) {
    chunk = vocabulary <= kSingleChunk ? vocabulary : kChunk;
    const int64_t bytes_per_logit = 4 + static_cast<int64_t>(size_of(call.hidden.dtype));
    block = std::min(tokens, kLogitBytes / (chunk * bytes_per_logit) / 128 * 128);
    chunks = blocks(vocabulary, chunk);
    token_blocks = blocks(tokens, block);
    // bf16 results that are sums over several products are summed beside their place.
    sums_hidden = with_gradients && chunks > 1 && call.grad_hidden.dtype == DType::kBF16;
    sums_weight = with_gradients && token_blocks > 1 && call.grad_weight.dtype == DType::kBF16;
  }

  int64_t tokens, vocabulary, width;
  bool with_gradients;
  int64_t chunk, chunks;        // columns, number
  int64_t block, token_blocks;  // rows, number
  bool sums_hidden, sums_weight;
};

struct Scratch {
  Scratch(const CrossEntropy& call, const Plan& plan, Workspace& workspace) {
    const auto tokens = static_cast<size_t>(plan.tokens);
    state.maximum = workspace.take<float>(tokens);
    state.sum = workspace.take<float>(tokens);
    state.target_logit = workspace.take<float>(tokens);
    logits = Tensor(workspace.take<float>(static_cast<size_t>(plan.block * plan.chunk)),
                    DType::kFP32, {plan.block, plan.chunk});
    if (!plan.with_gradients) return;
    const DType dtype = call.hidden.dtype;
    grad_logits = Tensor(workspace.take<std::byte>(logits.bytes() / 4 * size_of(dtype)), dtype,
                         {plan.block, plan.chunk});
    if (plan.sums_hidden) {
      hidden_sum = Tensor(workspace.take<float>(static_cast<size_t>(plan.tokens * plan.width)),
                          DType::kFP32, {plan.tokens, plan.width});
    }
    if (plan.sums_weight) {
      weight_sum = Tensor(workspace.take<float>(static_cast<size_t>(plan.chunk * plan.width)),
                          DType::kFP32, {plan.chunk, plan.width});
    }
  }

  SoftmaxState state;          // per token
  Tensor logits, grad_logits;  // of one block and chunk
  Tensor hidden_sum;           // (T, H)
  Tensor weight_sum;           // (chunk, H)
};

class Computation {
 public:
  Computation(const CrossEntropy& call, Workspace& workspace, const Gemm& gemm)
      : call_(call), plan_(call), scratch_(call, plan_, workspace) {
    gemm_bytes_ = largest_product(gemm);
    gemm_memory_ = workspace.take<std::byte>(gemm_bytes_);
  }

  void run(Gemm& gemm, ThreadPool& pool) {
    gemm_ = &gemm;
    pool_ = &pool;
    std::fill_n(scratch_.state.maximum, plan_.tokens, -std::numeric_limits<float>::infinity());
    std::fill_n(scratch_.state.sum, plan_.tokens, 0.0f);
    std::fill_n(scratch_.state.target_logit, plan_.tokens, 0.0f);
    const bool one_pass = plan_.chunks == 1;
    for (int64_t c = 0; c < plan_.chunks; ++c) pass(c, Update::kYes, one_pass);
    if (!one_pass && plan_.with_gradients) {
      for (int64_t c = 0; c < plan_.chunks; ++c) pass(c, Update::kNo, true);
    }
    if (plan_.sums_hidden) {
      pool_->run_ranges(plan_.tokens, [&](int64_t first, int64_t last) {
        narrow(scratch_.hidden_sum.row_range(first, last - first).as<float>(),
               call_.grad_hidden.row_range(first, last - first).data, (last - first) * plan_.width);
      });
    }
    sum_losses();
  }

 private:
  enum class Update { kNo, kYes };

  /// Rows of a block of tokens, columns of a chunk.
  struct Piece {
    int64_t token_block, first_token, tokens;
    int64_t chunk, first_column, columns;
  };

  Piece piece(int64_t token_block, int64_t chunk) const {
    const int64_t token = token_block * plan_.block;
    const int64_t column = chunk * plan_.chunk;
    return {token_block, token,  std::min(plan_.block, plan_.tokens - token),
            chunk,       column, std::min(plan_.chunk, plan_.vocabulary - column)};
  }

  /// The scratch tensors are contiguous in the shape of the piece at hand.
  static Tensor shaped(const Tensor& scratch, const Piece& p) {
    return Tensor(scratch.data, scratch.dtype, {p.tokens, p.columns});
  }

  // The three products of a piece.
  MatMul logits(const Piece& p) const {
    return {.out = shaped(scratch_.logits, p),
            .a = call_.hidden.row_range(p.first_token, p.tokens),
            .b = call_.weight.row_range(p.first_column, p.columns),
            .transpose_b = true};
  }
  MatMul grad_hidden(const Piece& p) const {
    const Tensor& sum = plan_.sums_hidden ? scratch_.hidden_sum : call_.grad_hidden;
    return {.out = sum.row_range(p.first_token, p.tokens),
            .a = shaped(scratch_.grad_logits, p),
            .b = call_.weight.row_range(p.first_column, p.columns),
            .accumulate = p.chunk > 0};
  }
  MatMul grad_weight(const Piece& p) const {
    MatMul product = {.out = {},
                      .a = shaped(scratch_.grad_logits, p),
                      .b = call_.hidden.row_range(p.first_token, p.tokens),
                      .transpose_a = true};
    if (plan_.sums_weight) {
      product.out = scratch_.weight_sum.row_range(0, p.columns);
      product.accumulate = p.token_block > 0;
    } else {
      product.out = call_.grad_weight.row_range(p.first_column, p.columns);
      product.accumulate = call_.accumulate_weight || p.token_block > 0;
    }
    return product;
  }

  size_t largest_product(const Gemm& gemm) const {
    const Piece largest = piece(0, 0);
    size_t bytes = gemm.workspace_bytes(logits(largest));
    if (plan_.with_gradients) {
      bytes = std::max(bytes, gemm.workspace_bytes(grad_hidden(largest)));
      bytes = std::max(bytes, gemm.workspace_bytes(grad_weight(largest)));
    }
    return bytes;
  }

  void multiply(const MatMul& product) {
    gemm_->run(product, Workspace(gemm_memory_, gemm_bytes_), *pool_);
  }

  void pass(int64_t chunk, Update update, bool differentiate) {
    for (int64_t b = 0; b < plan_.token_blocks; ++b) {
      const Piece p = piece(b, chunk);
      multiply(logits(p));
      if (update == Update::kYes) {
        pool_->run_ranges(p.tokens, [&](int64_t first, int64_t last) {
          softmax_update_rows(logit_chunk(p), state_from(p.first_token), {first, last});
        });
      }
      if (differentiate && plan_.with_gradients) add_gradients(p);
    }
    if (differentiate && plan_.sums_weight) finish_weight(piece(0, chunk));
  }

  void add_gradients(const Piece& p) {
    const Tensor gradient = shaped(scratch_.grad_logits, p);
    pool_->run_ranges(p.tokens, [&](int64_t first, int64_t last) {
      softmax_gradient_rows(logit_chunk(p), state_from(p.first_token), gradient, {first, last});
    });
    multiply(grad_hidden(p));
    multiply(grad_weight(p));
  }

  void finish_weight(const Piece& p) {
    const Tensor out = call_.grad_weight.row_range(p.first_column, p.columns);
    pool_->run_ranges(p.columns, [&](int64_t first, int64_t last) {
      const float* sum = scratch_.weight_sum.row_range(first, last - first).as<float>();
      const Tensor rows = out.row_range(first, last - first);
      call_.accumulate_weight ? add_rounded(sum, rows.data, rows.dtype, rows.elements())
                              : narrow(sum, rows.data, rows.elements());
    });
  }

  void sum_losses() {
    const int32_t* targets = call_.targets.as<const int32_t>();
    double loss = 0;
    int64_t count = 0;
    for (int64_t t = 0; t < plan_.tokens; ++t) {
      if (targets[t] < 0) continue;
      loss += double{scratch_.state.maximum[t]} + std::log(double{scratch_.state.sum[t]}) -
              double{scratch_.state.target_logit[t]};
      ++count;
    }
    if (call_.loss_sum != nullptr) *call_.loss_sum = loss;
    if (call_.token_count != nullptr) *call_.token_count = count;
  }

  LogitChunk logit_chunk(const Piece& p) const {
    return {.logits = scratch_.logits.as<const float>(),
            .first_column = p.first_column,
            .columns = p.columns,
            .targets = call_.targets.as<const int32_t>() + p.first_token};
  }
  SoftmaxState state_from(int64_t token) const {
    return {scratch_.state.maximum + token, scratch_.state.sum + token,
            scratch_.state.target_logit + token};
  }

  const CrossEntropy& call_;
  Plan plan_;
  Scratch scratch_;
  size_t gemm_bytes_ = 0;
  std::byte* gemm_memory_ = nullptr;
  Gemm* gemm_ = nullptr;
  ThreadPool* pool_ = nullptr;
};

}  // namespace

size_t cross_entropy_workspace(const CrossEntropy& call, const Gemm& gemm) {
  Workspace measure;
  const Computation computation(call, measure, gemm);
  return measure.used();
}

void cross_entropy(const CrossEntropy& call, Workspace workspace, Gemm& gemm, ThreadPool& pool) {
  assert(call.hidden.shape[0] > 0 && call.targets.shape[0] == call.hidden.shape[0]);
  assert(call.hidden.dtype == call.weight.dtype && call.hidden.shape[1] == call.weight.shape[1]);
  assert((call.grad_hidden.elements() > 0) == (call.grad_weight.elements() > 0));
  Computation(call, workspace, gemm).run(gemm, pool);
}

}  // namespace flashshard::cpu
