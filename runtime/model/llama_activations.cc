#include "runtime/model/llama_activations.h"

#include <cstddef>

#include "runtime/model/llama_activation_graph.h"

namespace flashshard {
namespace {

using Id = LlamaActivationGraph::Id;

Tensor first_rows(const Tensor& tensor, int64_t tokens) {
  return tensor ? tensor.row_range(0, tokens) : tensor;
}

}  // namespace

BlockActivations first_rows(const BlockActivations& block, int64_t tokens) {
  return block.map([tokens](const Tensor& tensor) { return first_rows(tensor, tokens); });
}

SharedActivations first_rows(const SharedActivations& shared, int64_t tokens) {
  const Tensor logits = shared.logits;  // of one token, whatever the micro-batch
  SharedActivations result = shared;
  result.logits = {};
  result = result.map([tokens](const Tensor& tensor) { return first_rows(tensor, tokens); });
  result.logits = logits;
  return result;
}

ActivationPlan plan_activations(const LlamaOptions& options, const ActivationShape& shape) {
  return ActivationPlan(LlamaActivationGraph(options, shape).lifetimes());
}

int64_t activation_bytes(const LlamaOptions& options, const ActivationShape& shape) {
  return plan_activations(options, shape).bytes();
}

LlamaActivations::LlamaActivations(MemoryLedger& ledger, const LlamaOptions& options,
                                   const ActivationShape& shape)
    : shape_(shape) {
  const LlamaActivationGraph graph(options, shape);
  const ActivationPlan plan(graph.lifetimes());
  auto* region = static_cast<std::byte*>(
      ledger.allocate(MemoryClass::kActivations, static_cast<size_t>(plan.bytes())));
  const auto placed = [&](Id id) {
    if (id == LlamaActivationGraph::kNoTensor) return Tensor();
    Tensor tensor = graph.tensors()[id];
    tensor.data = region + plan.tensors()[id].offset;
    return tensor;
  };
  for (const BlockViewsOf<Id>& block : graph.blocks()) {
    blocks_.push_back({.forward = block.forward.map(placed),
                       .recompute = block.recompute.map(placed),
                       .backward = block.backward.map(placed)});
  }
  shared_ = graph.shared().map(placed);
  for (const Id cache : graph.caches()) caches_.push_back(placed(cache));
}

}  // namespace flashshard
