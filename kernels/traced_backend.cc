#include "kernels/traced_backend.h"

#include <fmt/format.h>

#include <chrono>
#include <utility>

#ifdef FLASHSHARD_HAVE_NVTX
#include <nvtx3/nvToolsExt.h>
#endif

namespace flashshard {
namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void push_nvtx([[maybe_unused]] const std::string& name) {
#ifdef FLASHSHARD_HAVE_NVTX
  nvtxRangePushA(name.c_str());
#endif
}
void pop_nvtx() {
#ifdef FLASHSHARD_HAVE_NVTX
  nvtxRangePop();
#endif
}

std::string shape_of(const Tensor& tensor) {
  std::string text;
  for (int i = 0; i < tensor.rank; ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : " x ", tensor.shape[static_cast<size_t>(i)]);
  }
  return text;
}

std::string attention_text(const Tensor& qkv, const Tensor& document_starts) {
  return shape_of(qkv) + (document_starts ? ", within documents" : "");
}

std::string bytes_text(size_t bytes) { return fmt::format("{} bytes", bytes); }

int64_t elements_of(std::span<const UpdateTensor> tensors) {
  int64_t count = 0;
  for (const UpdateTensor& tensor : tensors) count += tensor.count;
  return count;
}

}  // namespace

TracedBackend::TracedBackend(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

void TracedBackend::start() {
  events_.clear();
  open_.clear();
  recording_ = true;
}

std::vector<TraceEvent> TracedBackend::stop() {
  recording_ = false;
  return std::exchange(events_, {});
}

void TracedBackend::open(std::string_view name, std::string detail) {
  push_nvtx(std::string(name));
  if (!recording_) return;
  backend_->synchronize();
  open_.push_back({std::string(name), std::move(detail), now_ns()});
}

void TracedBackend::close() {
  pop_nvtx();
  // A range that was open when recording began is not known here.
  if (!recording_ || open_.empty()) return;
  backend_->synchronize();
  OpenRange& range = open_.back();
  events_.push_back({std::move(range.name), std::move(range.detail), range.begin_ns, now_ns()});
  open_.pop_back();
}

template <class Detail, class Operation>
void TracedBackend::record(std::string_view name, const Detail& detail,
                           const Operation& operation) {
  open(name, recording_ ? detail() : std::string());
  operation();
  close();
}

void TracedBackend::begin_range(std::string_view name, int64_t index) {
  open(name, index < 0 ? std::string() : fmt::format("{}", index));
}
void TracedBackend::end_range() { close(); }

void TracedBackend::zero(void* pointer, size_t bytes) {
  record(
      "zero", [&] { return bytes_text(bytes); }, [&] { backend_->zero(pointer, bytes); });
}
void TracedBackend::copy(void* to, const void* from, size_t bytes) {
  record(
      "copy", [&] { return bytes_text(bytes); }, [&] { backend_->copy(to, from, bytes); });
}

size_t TracedBackend::workspace_bytes(const MatMul& call) const {
  return backend_->workspace_bytes(call);
}
size_t TracedBackend::workspace_bytes(const AttentionForward& call) const {
  return backend_->workspace_bytes(call);
}
size_t TracedBackend::workspace_bytes(const AttentionDecode& call) const {
  return backend_->workspace_bytes(call);
}
size_t TracedBackend::workspace_bytes(const AttentionBackward& call) const {
  return backend_->workspace_bytes(call);
}
size_t TracedBackend::workspace_bytes(const EmbeddingBackward& call) const {
  return backend_->workspace_bytes(call);
}
size_t TracedBackend::workspace_bytes(const RmsNormBackward& call) const {
  return backend_->workspace_bytes(call);
}
size_t TracedBackend::workspace_bytes(const BiasBackward& call) const {
  return backend_->workspace_bytes(call);
}
size_t TracedBackend::workspace_bytes(const CrossEntropy& call) const {
  return backend_->workspace_bytes(call);
}
void TracedBackend::bind_workspace(void* pointer, size_t bytes) {
  backend_->bind_workspace(pointer, bytes);
}

void TracedBackend::matmul(const MatMul& call) {
  record(
      "matmul",
      [&] {
        return fmt::format("{}: {} * {}", shape_of(call.out), shape_of(call.a), shape_of(call.b));
      },
      [&] { backend_->matmul(call); });
}
void TracedBackend::embedding(const EmbeddingForward& call) {
  record(
      "embedding", [&] { return shape_of(call.out); }, [&] { backend_->embedding(call); });
}
void TracedBackend::embedding_backward(const EmbeddingBackward& call) {
  record(
      "embedding_backward", [&] { return shape_of(call.grad_out); },
      [&] { backend_->embedding_backward(call); });
}
void TracedBackend::rmsnorm(const RmsNormForward& call) {
  record(
      "rmsnorm", [&] { return shape_of(call.x); }, [&] { backend_->rmsnorm(call); });
}
void TracedBackend::rmsnorm_backward(const RmsNormBackward& call) {
  record(
      "rmsnorm_backward", [&] { return shape_of(call.x); },
      [&] { backend_->rmsnorm_backward(call); });
}
void TracedBackend::rope(const Rope& call) {
  record(
      "rope", [&] { return shape_of(call.qkv); }, [&] { backend_->rope(call); });
}
void TracedBackend::bias_backward(const BiasBackward& call) {
  record(
      "bias_backward", [&] { return shape_of(call.grad_out); },
      [&] { backend_->bias_backward(call); });
}
void TracedBackend::attention(const AttentionForward& call) {
  record(
      "attention", [&] { return attention_text(call.qkv, call.document_starts); },
      [&] { backend_->attention(call); });
}
void TracedBackend::attention_decode(const AttentionDecode& call) {
  record(
      "attention_decode", [&] { return shape_of(call.keys_values); },
      [&] { backend_->attention_decode(call); });
}
void TracedBackend::attention_backward(const AttentionBackward& call) {
  record(
      "attention_backward", [&] { return attention_text(call.qkv, call.document_starts); },
      [&] { backend_->attention_backward(call); });
}
void TracedBackend::swiglu(const SwiGluForward& call) {
  record(
      "swiglu", [&] { return shape_of(call.gate_up); }, [&] { backend_->swiglu(call); });
}
void TracedBackend::swiglu_backward(const SwiGluBackward& call) {
  record(
      "swiglu_backward", [&] { return shape_of(call.gate_up); },
      [&] { backend_->swiglu_backward(call); });
}
void TracedBackend::cross_entropy(const CrossEntropy& call) {
  record(
      "cross_entropy",
      [&] { return fmt::format("{} * {}", shape_of(call.hidden), shape_of(call.weight)); },
      [&] { backend_->cross_entropy(call); });
}
void TracedBackend::fold(const Fold& call) {
  record(
      "fold", [&] { return fmt::format("{} of {}", call.inputs.size(), shape_of(call.out)); },
      [&] { backend_->fold(call); });
}
void TracedBackend::exact_norm(const ExactNorm& call) {
  record(
      "exact_norm", [&] { return fmt::format("{} tensors", call.tensors.size()); },
      [&] { backend_->exact_norm(call); });
}
void TracedBackend::encode_master(const EncodeMaster& call) {
  record(
      "encode_master", [&] { return fmt::format("{} elements", call.count); },
      [&] { backend_->encode_master(call); });
}
void TracedBackend::decode_master(const DecodeMaster& call) {
  record(
      "decode_master", [&] { return fmt::format("{} elements", call.count); },
      [&] { backend_->decode_master(call); });
}
void TracedBackend::update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors) {
  record(
      "update", [&] { return fmt::format("{} elements", elements_of(tensors)); },
      [&] { backend_->update(tensors, factors); });
}

}  // namespace flashshard
