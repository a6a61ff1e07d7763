// A Llama with everything that a test needs around it: backend, ledger, weights and gradients in
// the ledger.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/numerics/bf16.h"
#include "optim/memory.h"
#include "runtime/model/llama.h"

namespace flashshard {

inline std::vector<float> read_values(const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = tensor.dtype == DType::kFP32 ? tensor.as<float>()[i]
                                             : bf16_to_float(tensor.as<uint16_t>()[i]);
  }
  return values;
}

inline void write_values(const Tensor& tensor, std::span<const float> values) {
  ASSERT_EQ(static_cast<size_t>(tensor.elements()), values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype == DType::kFP32) {
      tensor.as<float>()[i] = values[i];
    } else {
      tensor.as<uint16_t>()[i] = float_to_bf16(values[i]);
    }
  }
}

/// Bits of a tensor, for comparisons that allow no rounding.
inline std::vector<std::byte> bytes_of(const Tensor& tensor) {
  std::vector<std::byte> bytes(tensor.bytes());
  std::memcpy(bytes.data(), tensor.data, bytes.size());
  return bytes;
}

/// Sets every byte to 0xff: NaN in bf16 and in fp32.
inline void poison(const Tensor& tensor) { std::memset(tensor.data, 0xff, tensor.bytes()); }

/// The same integer hash as in golden/make_llama.py.
inline uint32_t golden_hash(uint32_t x) {
  for (int round = 0; round < 2; ++round) x = ((x >> 16) ^ x) * 0x45d9f3bu;
  return (x >> 16) ^ x;
}
inline bool is_bias(const ParameterSpec& parameter) { return parameter.name.ends_with(".bias"); }
/// Values exact in bf16, a function of (tensor, element): matrices around 0, norms around 1, biases
/// around 0.
inline float golden_weight(size_t tensor, size_t element, const ParameterSpec& parameter) {
  const uint32_t h = golden_hash(static_cast<uint32_t>(element) * 2654435761u +
                                 97531u * (static_cast<uint32_t>(tensor) + 1));
  if (parameter.role == ParameterRole::kVector) {
    return (is_bias(parameter) ? 0.0f : 1.0f) + (static_cast<float>(h & 63) - 32.0f) / 128.0f;
  }
  return (static_cast<float>(h & 255) - 128.0f) / 256.0f;
}

inline LlamaOptions tiny_options(bool tied, DType dtype) {
  LlamaOptions options;
  options.vocab_size = 61;
  options.hidden_size = 32;
  options.layers = 2;
  options.heads = 4;
  options.kv_heads = 2;
  options.head_dim = 8;
  options.feed_forward_size = 48;
  options.tied_embeddings = tied;
  options.dtype = dtype;
  return options;
}

struct TokenBatch {
  std::vector<int32_t> inputs, targets;
  int64_t sequences = 0, sequence_length = 0;
  std::vector<int32_t> document_starts = {};

  MicroBatchView view() const {
    return {inputs, targets, sequences, sequence_length, document_starts};
  }
};

/// Pseudo-random tokens; `key` makes different ones.
inline TokenBatch make_batch(int64_t vocabulary, int64_t sequences, int64_t length, uint32_t key) {
  TokenBatch batch;
  batch.sequences = sequences;
  batch.sequence_length = length;
  const auto draw = [&](int64_t i) {
    return static_cast<int32_t>(golden_hash(static_cast<uint32_t>(i) + 1000003u * key) %
                                static_cast<uint32_t>(vocabulary));
  };
  for (int64_t i = 0; i < sequences * length; ++i) {
    batch.inputs.push_back(draw(2 * i));
    batch.targets.push_back(draw(2 * i + 1));
  }
  return batch;
}

class LlamaSession {
 public:
  LlamaSession(const LlamaOptions& options, const ActivationShape& shape, DType gradient_dtype,
               std::unique_ptr<Backend> backend = make_cpu_backend({.threads = 1}))
      : backend_(std::move(backend)),
        ledger_(std::make_unique<MemoryLedger>(*backend_)),
        model_(std::make_unique<Llama>(*ledger_, options, shape)) {
    for (const ParameterSpec& p : model_->parameters()) {
      weights_.push_back(ledger_->tensor(MemoryClass::kWeights, options.dtype, {p.rows, p.cols}));
      gradients_.push_back(
          ledger_->tensor(MemoryClass::kGradients, gradient_dtype, {p.rows, p.cols}));
      std::vector<float> values(static_cast<size_t>(p.elements()));
      for (size_t e = 0; e < values.size(); ++e) {
        values[e] = golden_weight(weights_.size() - 1, e, p);
      }
      write_values(weights_.back(), values);
    }
    model_->bind(weights_, gradients_);
  }

  Llama& model() { return *model_; }
  MemoryLedger& ledger() { return *ledger_; }
  const std::vector<Tensor>& weights() const { return weights_; }
  const std::vector<Tensor>& gradients() const { return gradients_; }
  const std::vector<ParameterSpec>& parameters() const { return model_->parameters(); }

  /// Every gradient's values, tensor by tensor.
  std::vector<std::vector<float>> gradient_values() const {
    std::vector<std::vector<float>> values;
    for (const Tensor& gradient : gradients_) values.push_back(read_values(gradient));
    return values;
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<MemoryLedger> ledger_;
  std::unique_ptr<Llama> model_;
  std::vector<Tensor> weights_, gradients_;
};

}  // namespace flashshard
