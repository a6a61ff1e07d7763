// What holds a rank's memory in a run: backend, ledger, model, sharded state and optimizer, made
// from a configuration.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "kernels/traced_backend.h"
#include "optim/ledger.h"
#include "optim/memory.h"
#include "optim/shard_layout.h"
#include "optim/sharded_optimizer.h"
#include "optim/sharded_state.h"
#include "proto/run.pb.h"
#include "runtime/model/llama.h"
#include "runtime/thread_placement.h"

namespace flashshard {

/// The model's options of a resolved configuration; `data_vocab_size` stands in for
/// model.vocab_size 0. Throws Error(kUsage).
LlamaOptions llama_options(const proto::RunConfig& config, int64_t data_vocab_size);

/// What a token attends to in a run.
AttentionScope attention_scope(const proto::RunConfig& config);

/// Some rank sums several micro-batches of a step locally: their M = global_batch / micro_batch
/// exceed the ranks.
bool accumulates(const proto::RunConfig& config, int world_size);

class Engine {
 public:
  /// Allocates everything a step will need and settles the calling thread (thread_placement.h).
  /// `config` is resolved. Collective. Throws Error(kUsage, kOutOfSpace).
  Engine(Communicator& communicator, const proto::RunConfig& config, int64_t data_vocab_size);

  Backend& backend() { return *backend_; }
  /// What records a step's operations, in a run with run.profile; otherwise null.
  TracedBackend* traced_backend() { return traced_backend_; }
  Model& model() { return *model_; }
  const LlamaOptions& model_options() const { return model_options_; }
  ShardedState& state() { return *state_; }
  ShardedOptimizer& optimizer() { return *optimizer_; }
  const ShardLayout& layout() const { return *layout_; }
  int64_t parameters() const { return llama_parameter_count(model_options_); }

  const MemoryTable& tagged() const { return ledger_->tagged(); }
  const MemoryTable& predicted() const { return predicted_; }
  /// Where this rank computes.
  const ThreadPlacement& threads() const { return threads_; }
  /// Resident bytes before the first arena: what growth is measured from.
  int64_t resident_before() const { return resident_before_; }

  /// Draws fresh weights, the same at any world size.
  void initialize(uint64_t seed);
  /// Forward and backward of one micro-batch; the weights' gradients are added to when it is not
  /// the step's first.
  LossResult forward_backward(const MicroBatchView& batch, const LayerHooks& hooks, bool first) {
    return model_->forward_backward(batch, hooks, !first);
  }

  /// Whole weights from a checkpoint of any world size. Throws Error(kCheckpoint): damaged, other
  /// shapes, another dtype. restart_from_weights() must follow.
  void read_weights(const std::string& step_folder);
  /// Takes the weights as masters, with fresh states. Collective.
  void restart_from_weights();

 private:
  std::unique_ptr<Backend> make_backend(const proto::RunConfig& config, int threads);
  void allocate_gradients(DType dtype);
  MemoryTable predict(const proto::RunConfig& config, int rank, DType gradient,
                      const ActivationShape& shape) const;

  int64_t resident_before_ = 0;
  ThreadPlacement threads_;
  TracedBackend* traced_backend_ = nullptr;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<MemoryLedger> ledger_;
  LlamaOptions model_options_;
  bool accumulates_;
  std::unique_ptr<Llama> model_;
  std::unique_ptr<UpdateRule> rule_;
  std::unique_ptr<ShardLayout> layout_;
  std::unique_ptr<ShardedState> state_;
  std::vector<Tensor> gradients_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
  MemoryTable predicted_;
};

}  // namespace flashshard
