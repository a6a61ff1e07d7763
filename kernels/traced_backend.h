// A backend that records when each operation of another one ran, for a look into one step
// (`run.profile`). In builds with the CUDA toolkit its ranges are NVTX ranges as well.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"

namespace flashshard {

struct TraceEvent {
  std::string name;      // of the operation or range
  std::string detail;    // shapes of an operation, the index of a range; may be empty
  int64_t begin_ns = 0;  // of std::chrono::steady_clock
  int64_t end_ns = 0;
};

/// Forwards everything. Between start() and stop() it waits for the device before and after each
/// operation, so that times are true and operations do not overlap; at other times it adds nothing.
/// One thread at a time, as every backend.
class TracedBackend final : public Backend {
 public:
  explicit TracedBackend(std::unique_ptr<Backend> backend);

  void start();
  /// The events since start(), in the order in which they ended.
  std::vector<TraceEvent> stop();

  std::string_view name() const override { return backend_->name(); }
  std::string_view environment() const override { return backend_->environment(); }

  void* allocate(size_t bytes) override { return backend_->allocate(bytes); }
  void release(void* pointer, size_t bytes) noexcept override { backend_->release(pointer, bytes); }
  void zero(void* pointer, size_t bytes) override;
  void copy(void* to, const void* from, size_t bytes) override;
  void synchronize() override { backend_->synchronize(); }
  void begin_range(std::string_view name, int64_t index) override;
  void end_range() override;

  size_t workspace_bytes(const MatMul& call) const override;
  size_t workspace_bytes(const AttentionForward& call) const override;
  size_t workspace_bytes(const AttentionDecode& call) const override;
  size_t workspace_bytes(const AttentionBackward& call) const override;
  size_t workspace_bytes(const EmbeddingBackward& call) const override;
  size_t workspace_bytes(const RmsNormBackward& call) const override;
  size_t workspace_bytes(const BiasBackward& call) const override;
  size_t workspace_bytes(const CrossEntropy& call) const override;
  void bind_workspace(void* pointer, size_t bytes) override;

  void matmul(const MatMul& call) override;
  void embedding(const EmbeddingForward& call) override;
  void embedding_backward(const EmbeddingBackward& call) override;
  void rmsnorm(const RmsNormForward& call) override;
  void rmsnorm_backward(const RmsNormBackward& call) override;
  void rope(const Rope& call) override;
  void bias_backward(const BiasBackward& call) override;
  void attention(const AttentionForward& call) override;
  void attention_decode(const AttentionDecode& call) override;
  void attention_backward(const AttentionBackward& call) override;
  void swiglu(const SwiGluForward& call) override;
  void swiglu_backward(const SwiGluBackward& call) override;
  void cross_entropy(const CrossEntropy& call) override;

  void fold(const Fold& call) override;
  void exact_norm(const ExactNorm& call) override;
  void encode_master(const EncodeMaster& call) override;
  void decode_master(const DecodeMaster& call) override;
  void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors) override;

 private:
  struct OpenRange {
    std::string name, detail;
    int64_t begin_ns = 0;
  };
  void open(std::string_view name, std::string detail);
  void close();
  /// Runs `operation` inside an event of this name; `detail()` is asked for while recording only.
  template <class Detail, class Operation>
  void record(std::string_view name, const Detail& detail, const Operation& operation);

  std::unique_ptr<Backend> backend_;
  bool recording_ = false;
  std::vector<OpenRange> open_;
  std::vector<TraceEvent> events_;
};

}  // namespace flashshard
