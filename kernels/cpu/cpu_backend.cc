// The CPU's implementation of the catalogue: checks shapes, lays out the workspace, hands rows and
// tasks to the thread pool.
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <new>

#include "kernels/backend.h"
#include "kernels/cpu/attention_geometry.h"
#include "kernels/cpu/cross_entropy.h"
#include "kernels/cpu/embedding.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/update.h"
#include "kernels/cpu/vector_kernels.h"
#include "kernels/cpu/workspace.h"
#include "kernels/error.h"

namespace flashshard {
namespace {

using cpu::Workspace;

constexpr size_t kHugePage = size_t{2} << 20;

/// Whole huge pages where there is room for some: an arena of many gigabytes is walked from end to
/// end at every step, and small pages miss the TLB all the way.
std::align_val_t alignment_of(size_t bytes) {
  return std::align_val_t{bytes >= kHugePage ? kHugePage : size_t{256}};
}

/// Partial sums of the gradient of a norm's weight or of a bias: blocks of rows that depend on T
/// alone, added in order.
struct SumBlocks {
  explicit SumBlocks(int64_t tokens)
      : rows(std::max<int64_t>(128, (tokens + 63) / 64)), count((tokens + rows - 1) / rows) {}
  int64_t rows, count;
};

void check_shape(const AttentionShape& shape, const Tensor& qkv, const Tensor& document_starts) {
  assert(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 && shape.head_dim > 0);
  assert(qkv.shape[0] == shape.sequences * shape.sequence_length);
  assert(qkv.shape[1] == int64_t{shape.heads + 2 * shape.kv_heads} * shape.head_dim);
  assert(!document_starts || document_starts.elements() == qkv.shape[0]);
  static_cast<void>(shape), static_cast<void>(qkv), static_cast<void>(document_starts);
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options)
      : pool_(options.threads),
        gemm_(options.gemm, options.threads),
        parallel_for_([this](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
          pool_.run_ranges(count, body);
        }),
        environment_(fmt::format("cpu: {}, {}, {} {}", cpu::instruction_set(), gemm_.description(),
                                 options.threads, options.threads == 1 ? "thread" : "threads")) {}

  std::string_view name() const override { return "cpu"; }
  std::string_view environment() const override { return environment_; }

  void* allocate(size_t bytes) override {
    void* memory = ::operator new(std::max<size_t>(bytes, 1), alignment_of(bytes), std::nothrow);
    if (memory == nullptr) {
      throw Error(ExitCode::kOutOfSpace, fmt::format("cannot allocate {} bytes of memory", bytes),
                  "cpu backend", "use a smaller micro-batch or model, or more ranks");
    }
    // A hint, which a kernel without huge pages refuses. The last, broken page stays small.
    if (bytes >= kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    std::memset(memory, 0, bytes);
    return memory;
  }
  void release(void* pointer, size_t bytes) noexcept override {
    ::operator delete(pointer, alignment_of(bytes));
  }
  void zero(void* pointer, size_t bytes) override {
    if (bytes > 0) std::memset(pointer, 0, bytes);
  }
  void copy(void* to, const void* from, size_t bytes) override {
    if (bytes > 0) std::memmove(to, from, bytes);
  }
  void synchronize() override {}  // every call has finished when it returns

  size_t workspace_bytes(const MatMul& call) const override { return gemm_.workspace_bytes(call); }
  size_t workspace_bytes(const AttentionForward& call) const override {
    return attention_bytes(cpu::attention_forward_scratch(call.shape));
  }
  size_t workspace_bytes(const AttentionDecode& call) const override {
    return attention_bytes(cpu::attention_decode_scratch(call));
  }
  size_t workspace_bytes(const AttentionBackward& call) const override {
    return attention_bytes(cpu::attention_backward_scratch(call.shape));
  }
  size_t workspace_bytes(const EmbeddingBackward& call) const override {
    return cpu::embedding_backward_workspace(call, pool_.threads());
  }
  size_t workspace_bytes(const RmsNormBackward& call) const override {
    Workspace measure;
    sums_over_tokens(call.x, measure);
    return measure.used();
  }
  size_t workspace_bytes(const BiasBackward& call) const override {
    Workspace measure;
    sums_over_tokens(call.grad_out, measure);
    return measure.used();
  }
  size_t workspace_bytes(const CrossEntropy& call) const override {
    return cpu::cross_entropy_workspace(call, gemm_);
  }
  void bind_workspace(void* pointer, size_t bytes) override {
    workspace_ = Workspace(static_cast<std::byte*>(pointer), bytes);
  }

  void matmul(const MatMul& call) override { gemm_.run(call, workspace_, pool_); }

  void embedding(const EmbeddingForward& call) override { cpu::embedding_forward(call, pool_); }
  void embedding_backward(const EmbeddingBackward& call) override {
    cpu::embedding_backward(call, workspace_, pool_);
  }

  void rmsnorm(const RmsNormForward& call) override {
    assert(call.x.dtype == call.weight.dtype && call.x.dtype == call.out.dtype);
    assert(call.x.shape[1] == call.weight.shape[0]);
    for_rows(call.x.shape[0], [&](cpu::Range rows) { cpu::rmsnorm_rows(call, rows); });
  }

  void rmsnorm_backward(const RmsNormBackward& call) override {
    assert(call.x.dtype == call.weight.dtype && call.x.dtype == call.grad_x.dtype);
    sum_over_tokens(call.grad_weight, call.x, [&](cpu::Range rows, float* sum) {
      cpu::rmsnorm_backward_rows(call, rows, sum);
    });
  }

  void rope(const Rope& call) override {
    assert(call.head_dim % 2 == 0 && call.sequence_length > 0);
    assert(!call.bias || (!call.inverse && call.bias.dtype == call.qkv.dtype &&
                          call.bias.elements() == call.qkv.shape[1]));
    assert(!call.document_starts ||
           (call.first_position == 0 && call.document_starts.elements() == call.qkv.shape[0]));
    assert(call.cosine_sine.shape[0] >=
           call.first_position + std::min(call.sequence_length, call.qkv.shape[0]));
    for_rows(call.qkv.shape[0], [&](cpu::Range rows) { cpu::rope_rows(call, rows); });
  }

  void bias_backward(const BiasBackward& call) override {
    assert(call.grad_bias.elements() == call.grad_out.shape[1]);
    const Tensor& out = call.grad_out;
    sum_over_tokens(call.grad_bias, out, [&](cpu::Range rows, float* sum) {
      for (int64_t t = rows.first; t < rows.last; ++t) {
        cpu::add_widened(out.row_range(t, 1).data, out.dtype, sum, out.shape[1]);
      }
    });
  }

  void attention(const AttentionForward& call) override {
    check_shape(call.shape, call.qkv, call.document_starts);
    for_heads(
        call.shape, cpu::attention_forward_scratch(call.shape),
        [&](int64_t task, float* scratch) { cpu::attention_forward_task(call, task, scratch); });
  }
  void attention_decode(const AttentionDecode& call) override {
    const AttentionShape shape = cpu::shape_of(call);
    assert(shape.sequence_length > 0 && shape.heads % shape.kv_heads == 0);
    assert(call.out.shape[1] == int64_t{shape.heads} * shape.head_dim);
    assert(call.keys_values.shape[1] == int64_t{2 * shape.kv_heads} * shape.head_dim);
    for_heads(shape, cpu::attention_decode_scratch(call), [&](int64_t task, float* scratch) {
      cpu::attention_decode_task(call, task, scratch);
    });
  }
  void attention_backward(const AttentionBackward& call) override {
    check_shape(call.shape, call.qkv, call.document_starts);
    for_heads(
        call.shape, cpu::attention_backward_scratch(call.shape),
        [&](int64_t task, float* scratch) { cpu::attention_backward_task(call, task, scratch); });
  }

  void swiglu(const SwiGluForward& call) override {
    assert(call.gate_up.shape[1] == 2 * call.out.shape[1]);
    for_rows(call.out.shape[0], [&](cpu::Range rows) { cpu::swiglu_rows(call, rows); });
  }
  void swiglu_backward(const SwiGluBackward& call) override {
    assert(call.gate_up.shape[1] == 2 * call.grad_out.shape[1]);
    for_rows(call.grad_out.shape[0],
             [&](cpu::Range rows) { cpu::swiglu_backward_rows(call, rows); });
  }

  void cross_entropy(const CrossEntropy& call) override {
    cpu::cross_entropy(call, workspace_, gemm_, pool_);
  }

  void fold(const Fold& call) override { cpu::fold(call, parallel_for_); }
  void exact_norm(const ExactNorm& call) override { cpu::exact_norm(call, parallel_for_); }
  void encode_master(const EncodeMaster& call) override { cpu::encode_master(call, parallel_for_); }
  void decode_master(const DecodeMaster& call) override { cpu::decode_master(call, parallel_for_); }
  void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors) override {
    cpu::update(tensors, factors, parallel_for_);
  }

 private:
  template <class Body>
  void for_rows(int64_t rows, Body body) {
    pool_.run_ranges(rows, [&](int64_t first, int64_t last) { body(cpu::Range{first, last}); });
  }

  /// One task per (sequence, key/value head); every participant has scratch of its own.
  template <class Body>
  void for_heads(const AttentionShape& shape, size_t scratch_floats, Body body) {
    Workspace workspace = workspace_;
    const size_t stride = padded_floats(scratch_floats);
    float* scratch = workspace.take<float>(stride * static_cast<size_t>(pool_.threads()));
    pool_.run(shape.sequences * shape.kv_heads, [&](int64_t task, int participant) {
      body(task, scratch + stride * static_cast<size_t>(participant));
    });
  }

  static size_t padded_floats(size_t floats) { return (floats + 15) / 16 * 16; }
  size_t attention_bytes(size_t scratch_floats) const {
    Workspace measure;
    measure.take<float>(padded_floats(scratch_floats) * static_cast<size_t>(pool_.threads()));
    return measure.used();
  }

  static float* sums_over_tokens(const Tensor& rows, Workspace& workspace) {
    return workspace.take<float>(
        static_cast<size_t>(SumBlocks(rows.shape[0]).count * rows.shape[1]));
  }

  /// gradient (N) += the sum over the rows of `terms` (T, N), which `add(rows, sum)` forms for a
  /// range of them.
  template <class Add>
  void sum_over_tokens(const Tensor& gradient, const Tensor& terms, Add add) {
    Workspace workspace = workspace_;
    float* sums = sums_over_tokens(terms, workspace);
    const int64_t tokens = terms.shape[0];
    const int64_t width = terms.shape[1];
    const SumBlocks blocks(tokens);
    pool_.run(blocks.count, [&](int64_t block, int) {
      float* sum = sums + block * width;
      std::fill(sum, sum + width, 0.0f);
      const int64_t first = block * blocks.rows;
      add(cpu::Range{first, std::min(tokens, first + blocks.rows)}, sum);
    });
    for (int64_t block = 1; block < blocks.count; ++block) {
      cpu::add_widened(sums + block * width, DType::kFP32, sums, width);
    }
    if (blocks.count > 0) cpu::add_rounded(sums, gradient.data, gradient.dtype, width);
  }

  cpu::ThreadPool pool_;
  cpu::Gemm gemm_;
  ParallelFor parallel_for_;
  std::string environment_;
  Workspace workspace_{nullptr, 0};
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) {
  if (options.threads < 1) {
    throw Error(ExitCode::kUsage, fmt::format("{} threads were asked for", options.threads),
                "cpu backend", "give each rank at least one thread");
  }
  return std::make_unique<CpuBackend>(options);
}

}  // namespace flashshard
