// The catalogue of operations: what a device can do, with shapes and dtypes. One implementation per
// device.
//
// Conventions
//   T  tokens of a micro-batch (sequences x sequence length), H  hidden size, F  feed-forward size,
//   V  vocabulary A, K  query and key/value heads, D  head dimension, Q = (A + 2K) * D  width of a
//   row of q‖k‖v
// Storage is bf16, or fp32 everywhere (`model.dtype: FP32`); arithmetic and accumulation are fp32.
// A weight gradient may be fp32 where the weight is bf16 (local accumulation). All tensors are
// row-major views. Calls are asynchronous on the backend's stream unless a comment says otherwise;
// synchronize() waits. Memory comes from the caller; `workspace_bytes` tells what a call needs and
// `bind_workspace` hands it over. Sizes are checked by the caller's layout; implementations assert
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "kernels/numerics/update_args.h"
#include "kernels/tensor.h"

namespace flashshard {

/// out = op(a) * op(b) (+ out when `accumulate`), op = transpose or identity; all two-dimensional.
/// Dtypes of a, b, out are bf16 or fp32 in any mix; products are summed in fp32 and rounded once.
struct MatMul {
  Tensor out;  // (M, N)
  Tensor a;    // (M, K), or (K, M) with transpose_a
  Tensor b;    // (K, N), or (N, K) with transpose_b
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;
};

struct EmbeddingForward {
  Tensor out;     // (T, H)
  Tensor table;   // (V, H)
  Tensor tokens;  // (T) int32 in [0, V)
};
/// grad_table[tokens[t]] += grad_out[t], in order of t for every row, summed in fp32 per row and
/// added once.
struct EmbeddingBackward {
  Tensor grad_table;  // (V, H) bf16 or fp32; rows without tokens stay as they are
  Tensor grad_out;    // (T, H)
  Tensor tokens;      // (T) int32
};

/// sum = x + delta; out = sum / rms(sum) * weight, rms = sqrt(mean(sum^2) + epsilon). The stored
/// (rounded) sum is what is normalised, so a second call on it alone gives the same bits: backward
/// recomputes `out` instead of keeping it.
struct RmsNormForward {
  Tensor out;          // (T, H)
  Tensor inverse_rms;  // (T) fp32
  Tensor sum;          // (T, H) written only when `delta` is given; may be the same memory as x
  Tensor x;            // (T, H)
  Tensor delta;        // (T, H), or empty: then x is normalised as it is
  Tensor weight;       // (H)
  float epsilon = 1e-5f;
};
/// grad_x += d(out)/d(x)^T grad_out ; grad_weight += its own.
struct RmsNormBackward {
  Tensor grad_x;       // (T, H), accumulated: holds the residual branch's gradient on entry
  Tensor grad_weight;  // (H) bf16 or fp32, accumulated; summed over T in fp32, added once
  Tensor grad_out;     // (T, H)
  Tensor x;            // (T, H) what was normalised
  Tensor inverse_rms;  // (T) fp32 from the forward
  Tensor weight;       // (H)
};

/// Adds the bias of q‖k‖v, where there is one, and rotates the q and k heads of each row, in place
/// and with one rounding; half-split pairs (i, i + D/2) as Hugging Face has it. The position of row
/// t is first_position + t mod sequence_length, less its document's start where starts are given.
struct Rope {
  Tensor qkv;                   // (T, Q)
  Tensor bias = {};             // (Q), or empty; not with `inverse`
  Tensor cosine_sine;           // (positions, D) fp32: D/2 cosines then D/2 sines per position
  Tensor document_starts = {};  // (T) int32, as in attention, or empty; not with first_position
  int64_t sequence_length = 0;
  int64_t first_position = 0;
  int heads = 0, kv_heads = 0, head_dim = 0;
  bool inverse = false;  // the backward: rotate by the negative angle
};

/// The backward of a bias: grad_bias[i] += sum over t of grad_out[t, i].
struct BiasBackward {
  Tensor grad_bias;  // (N) bf16 or fp32, accumulated; summed over T in fp32, added once
  Tensor grad_out;   // (T, N)
};

/// Causal attention with grouped key/value heads, softmax(q k^T / sqrt(D)) v per sequence; online
/// softmax in tiles, so no T x T matrix exists for a batch.
///
/// `document_starts` cuts sequences into documents that do not see each other: for every token the
/// index in its sequence of the first token of its document. It begins with 0 in each sequence and
/// goes up to a token's own index where a document begins, or stays. Keys before a row's start are
/// not read; on the CPU a document has the bits that it has as a sequence of its own.
struct AttentionShape {
  int64_t sequences = 0, sequence_length = 0;  // T = sequences * sequence_length
  int heads = 0, kv_heads = 0, head_dim = 0;
};
struct AttentionForward {
  Tensor out;          // (T, A*D)
  Tensor log_sum_exp;  // (T, A) fp32, for the backward
  Tensor qkv;          // (T, Q), q and k already rotated
  AttentionShape shape;
  Tensor document_starts = {};  // (T) int32, or empty: a sequence is one document
};
/// One more token of one sequence against all before it and itself: the last row of what
/// AttentionForward gives for the whole sequence, on the CPU with its bits.
struct AttentionDecode {
  Tensor out;          // (1, A*D)
  Tensor qkv;          // (1, Q) of the token, rotated; its queries are read
  Tensor keys_values;  // (tokens so far, 2*K*D): rotated k‖v of each, this token's in the last row
  int heads = 0, kv_heads = 0, head_dim = 0;
};
struct AttentionBackward {
  Tensor grad_qkv;     // (T, Q), written; gradients of the rotated q and k
  Tensor grad_out;     // (T, A*D)
  Tensor out;          // (T, A*D)
  Tensor log_sum_exp;  // (T, A) fp32
  Tensor qkv;          // (T, Q)
  AttentionShape shape;
  Tensor document_starts = {};  // as in the forward
};

/// out = silu(gate) * up, with gate‖up side by side in a row.
struct SwiGluForward {
  Tensor out;      // (T, F)
  Tensor gate_up;  // (T, 2F)
};
struct SwiGluBackward {
  Tensor grad_gate_up;  // (T, 2F), written; may be the same memory as gate_up
  Tensor grad_out;      // (T, F)
  Tensor gate_up;       // (T, 2F)
};

/// Language-model head and loss in one: logits = hidden * weight^T, never all of them at once
/// (chunks over V). loss_sum = sum over tokens with target >= 0 of (logsumexp(logits) -
/// logits[target]), fp64, in order of t. With gradients: of that SUM, not of a mean; the caller
/// scales by 1 / token count in the update.
struct CrossEntropy {
  double* loss_sum = nullptr;      // host memory, written; the call synchronises when it is set
  int64_t* token_count = nullptr;  // host memory, written: targets >= 0
  Tensor hidden;                   // (T, H)
  Tensor weight;                   // (V, H)
  Tensor targets;                  // (T) int32, -1 = not counted
  Tensor grad_hidden;              // (T, H), written, or empty for loss alone
  Tensor grad_weight;              // (V, H) bf16 or fp32, or empty for loss alone
  bool accumulate_weight = false;  // grad_weight += instead of =
};

/// Left fold in fp32 over inputs[0], inputs[1], ...: ((i0 + i1) + i2) + ..., rounded once to the
/// output's dtype. Starts at i0, never at +0; with `accumulate` at what an fp32 output holds: ((out
/// + i0) + i1) + ... Inputs and output are bf16 or fp32; `out` may be one of the inputs.
struct Fold {
  Tensor out;                           // (n)
  std::span<const void* const> inputs;  // each (n) of input_dtype
  DType input_dtype = DType::kBF16;
  bool accumulate = false;  // with an fp32 output
};

/// Exact sum of squares (docs/numerics.md): ten int64 limbs of base 2^32, unit 2^-149, added into;
/// and the count of groups of 32 holding an element whose magnitude is 2^60 or more (NaN and
/// infinity included). Groups start at element 0 of each tensor, so a tensor here starts at a group
/// boundary of its parameter. Synchronises.
struct ExactNorm {
  std::span<const Tensor> tensors;      // bf16 or fp32
  std::span<int64_t, 10> limbs;         // host memory, accumulated
  int64_t* nonfinite_groups = nullptr;  // host memory, accumulated
};

class Backend {
 public:
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  virtual std::string_view name() const = 0;  // "cpu", "cuda"
  /// What the bits of forward and backward depend on besides the inputs: instruction set, BLAS
  /// build, threads.
  virtual std::string_view environment() const = 0;

  // Memory. allocate returns zeroed memory aligned to 256 bytes and throws Error(kOutOfSpace).
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* pointer, size_t bytes) noexcept = 0;
  virtual void zero(void* pointer, size_t bytes) = 0;
  virtual void copy(void* to, const void* from, size_t bytes) = 0;  // any direction, asynchronous
  virtual void synchronize() = 0;

  // Names for a stretch of this rank's work, for profilers; nested. `index`: which layer or bucket,
  // -1 none. Use BackendRange.
  virtual void begin_range(std::string_view /*name*/, int64_t /*index*/) {}
  virtual void end_range() {}

  // Scratch memory of the calls below: the maximum over the calls that will be made, bound once.
  // Only shapes and dtypes are read here, so the tensors' pointers may be null; a smaller call of
  // the same kind needs no more.
  virtual size_t workspace_bytes(const MatMul& call) const = 0;
  virtual size_t workspace_bytes(const AttentionForward& call) const = 0;
  virtual size_t workspace_bytes(const AttentionDecode& call) const = 0;
  virtual size_t workspace_bytes(const AttentionBackward& call) const = 0;
  virtual size_t workspace_bytes(const EmbeddingBackward& call) const = 0;
  virtual size_t workspace_bytes(const RmsNormBackward& call) const = 0;
  virtual size_t workspace_bytes(const BiasBackward& call) const = 0;
  virtual size_t workspace_bytes(const CrossEntropy& call) const = 0;
  virtual void bind_workspace(void* pointer, size_t bytes) = 0;

  // Model operations.
  virtual void matmul(const MatMul& call) = 0;
  virtual void embedding(const EmbeddingForward& call) = 0;
  virtual void embedding_backward(const EmbeddingBackward& call) = 0;
  virtual void rmsnorm(const RmsNormForward& call) = 0;
  virtual void rmsnorm_backward(const RmsNormBackward& call) = 0;
  virtual void rope(const Rope& call) = 0;
  virtual void bias_backward(const BiasBackward& call) = 0;
  virtual void attention(const AttentionForward& call) = 0;
  virtual void attention_decode(const AttentionDecode& call) = 0;
  virtual void attention_backward(const AttentionBackward& call) = 0;
  virtual void swiglu(const SwiGluForward& call) = 0;
  virtual void swiglu_backward(const SwiGluBackward& call) = 0;
  virtual void cross_entropy(const CrossEntropy& call) = 0;

  // Sharding and update.
  virtual void fold(const Fold& call) = 0;
  virtual void exact_norm(const ExactNorm& call) = 0;
  virtual void encode_master(const EncodeMaster& call) = 0;
  virtual void decode_master(const DecodeMaster& call) = 0;
  virtual void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors) = 0;

 protected:
  Backend() = default;
};

/// A range of the scope it stands in.
class BackendRange {
 public:
  explicit BackendRange(Backend& backend, std::string_view name, int64_t index = -1)
      : backend_(backend) {
    backend_.begin_range(name, index);
  }
  ~BackendRange() { backend_.end_range(); }
  BackendRange(const BackendRange&) = delete;
  BackendRange& operator=(const BackendRange&) = delete;

 private:
  Backend& backend_;
};

/// Which library multiplies matrices on the CPU (docs/cpu-backend.md).
enum class GemmLibrary : uint8_t {
  kAuto,  // oneDNN for bf16 by bf16 where the processor multiplies bf16 natively, OpenBLAS for the
          // rest
  kOpenBlas,  // OpenBLAS alone
  kOneDnn,    // as kAuto, but an Error(kUsage) where oneDNN or the instructions are missing
};
struct CpuOptions {
  int threads = 1;  // of this rank; > 0
  GemmLibrary gemm = GemmLibrary::kAuto;
};
/// Throws Error(kUsage) for options that cannot be met here.
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

}  // namespace flashshard
