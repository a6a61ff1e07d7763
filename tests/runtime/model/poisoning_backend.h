// A backend that, before each operation, fills with NaN every byte of the activations' region whose
// tensors the plan holds for dead. A lifetime that is declared too short then shows in the results.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "runtime/model/activation_plan.h"

namespace flashshard {

class PoisoningBackend final : public Backend {
 public:
  explicit PoisoningBackend(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  /// From now on operation k is step k of `plan`, whose region is the allocation of its size.
  void begin_pass(const ActivationPlan& plan) {
    plan_ = &plan;
    operations_ = 0;
  }
  /// Operations since begin_pass.
  int operations() const { return operations_; }

  std::string_view name() const override { return backend_->name(); }
  std::string_view environment() const override { return backend_->environment(); }

  void* allocate(size_t bytes) override {
    void* pointer = backend_->allocate(bytes);
    // A model allocates its activations first.
    if (region_ == nullptr) region_ = static_cast<std::byte*>(pointer);
    return pointer;
  }
  void release(void* pointer, size_t bytes) noexcept override { backend_->release(pointer, bytes); }
  void zero(void* pointer, size_t bytes) override { backend_->zero(pointer, bytes); }
  void copy(void* to, const void* from, size_t bytes) override { backend_->copy(to, from, bytes); }
  void synchronize() override { backend_->synchronize(); }

  size_t workspace_bytes(const MatMul& call) const override { return bytes_of(call); }
  size_t workspace_bytes(const AttentionForward& call) const override { return bytes_of(call); }
  size_t workspace_bytes(const AttentionDecode& call) const override { return bytes_of(call); }
  size_t workspace_bytes(const AttentionBackward& call) const override { return bytes_of(call); }
  size_t workspace_bytes(const EmbeddingBackward& call) const override { return bytes_of(call); }
  size_t workspace_bytes(const RmsNormBackward& call) const override { return bytes_of(call); }
  size_t workspace_bytes(const BiasBackward& call) const override { return bytes_of(call); }
  size_t workspace_bytes(const CrossEntropy& call) const override { return bytes_of(call); }
  void bind_workspace(void* pointer, size_t bytes) override {
    backend_->bind_workspace(pointer, bytes);
  }

  void matmul(const MatMul& call) override { next().matmul(call); }
  void embedding(const EmbeddingForward& call) override { next().embedding(call); }
  void embedding_backward(const EmbeddingBackward& call) override {
    next().embedding_backward(call);
  }
  void rmsnorm(const RmsNormForward& call) override { next().rmsnorm(call); }
  void rmsnorm_backward(const RmsNormBackward& call) override { next().rmsnorm_backward(call); }
  void rope(const Rope& call) override { next().rope(call); }
  void bias_backward(const BiasBackward& call) override { next().bias_backward(call); }
  void attention(const AttentionForward& call) override { next().attention(call); }
  void attention_decode(const AttentionDecode& call) override { next().attention_decode(call); }
  void attention_backward(const AttentionBackward& call) override {
    next().attention_backward(call);
  }
  void swiglu(const SwiGluForward& call) override { next().swiglu(call); }
  void swiglu_backward(const SwiGluBackward& call) override { next().swiglu_backward(call); }
  void cross_entropy(const CrossEntropy& call) override { next().cross_entropy(call); }

  void fold(const Fold& call) override { backend_->fold(call); }
  void exact_norm(const ExactNorm& call) override { backend_->exact_norm(call); }
  void encode_master(const EncodeMaster& call) override { backend_->encode_master(call); }
  void decode_master(const DecodeMaster& call) override { backend_->decode_master(call); }
  void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors) override {
    backend_->update(tensors, factors);
  }

 private:
  template <class Call>
  size_t bytes_of(const Call& call) const {
    return backend_->workspace_bytes(call);
  }

  Backend& next() {
    if (plan_ != nullptr) {
      std::vector<bool> live(static_cast<size_t>(plan_->bytes()));
      for (const PlannedTensor& tensor : plan_->tensors()) {
        if (operations_ < tensor.first_step || operations_ > tensor.last_step) continue;
        const auto first = live.begin() + tensor.offset;
        std::fill(first, first + tensor.bytes, true);
      }
      for (size_t i = 0; i < live.size(); ++i) {
        if (!live[i]) region_[i] = std::byte{0xff};
      }
    }
    ++operations_;
    return *backend_;
  }

  std::unique_ptr<Backend> backend_;
  std::byte* region_ = nullptr;
  const ActivationPlan* plan_ = nullptr;
  int operations_ = 0;
};

}  // namespace flashshard
