// What holds a rank's memory in a run: backend, ledger, model, sharded state and optimizer, made
// from a configuration.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "kernels/traced_backend.h"
#include "optim/gradients.h"
#include "optim/ledger.h"
#include "optim/memory.h"
#include "optim/shard_groups.h"
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

/// Calls the hooks as a forward does, and a backward where it follows (LayerHooks): for a rank that
/// has no micro-batch of its own while the others have.
void announce_layers(const LlamaOptions& model, const LayerHooks& hooks, bool backward);

/// What a token attends to in a run.
AttentionScope attention_scope(const proto::RunConfig& config);

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
  const Sharding& sharding() const { return sharding_; }
  int64_t parameters() const { return llama_parameter_count(model_options_); }

  /// Whether checkpoints are written while training goes on, and the memory that they are copied
  /// into.
  bool saves_in_background() const { return saves_in_background_; }
  std::span<std::byte> save_staging() const { return save_staging_; }

  const MemoryTable& tagged() const { return ledger_->tagged(); }
  const MemoryTable& predicted() const { return predicted_; }
  /// Where this rank computes.
  const ThreadPlacement& threads() const { return threads_; }
  /// Resident bytes before the first arena: what growth is measured from.
  int64_t resident_before() const { return resident_before_; }

  /// Draws fresh weights, the same at any world size.
  void initialize(uint64_t seed);
  /// The loss of one micro-batch; null: this rank has none while others have. Collective at stage
  /// 3.
  LossResult evaluate(const MicroBatchView* batch);

  /// Takes the master weights of a checkpoint of any world size, with fresh states; each rank reads
  /// the rows that it owns. Collective; throws AgreedError(kCheckpoint): damaged, other shapes,
  /// another dtype.
  void start_from_weights(const std::string& step_folder, Communicator& communicator);

 private:
  std::unique_ptr<Backend> make_backend(const proto::RunConfig& config, int threads);
  void allocate_save_staging(const proto::RunConfig& config);
  MemoryTable predict(const proto::RunConfig& config, int rank, const ActivationShape& shape) const;

  int64_t resident_before_ = 0;
  Sharding sharding_;
  ShardGroups groups_;  // before anything that may fail on one rank
  ThreadPlacement threads_;
  TracedBackend* traced_backend_ = nullptr;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<MemoryLedger> ledger_;
  LlamaOptions model_options_;
  std::unique_ptr<Llama> model_;
  std::unique_ptr<UpdateRule> rule_;
  std::unique_ptr<ShardLayout> layout_;
  std::unique_ptr<BucketPlan> plan_;
  std::unique_ptr<ShardedState> state_;
  std::unique_ptr<Gradients> gradients_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
  bool saves_in_background_ = false;
  std::span<std::byte> save_staging_;
  MemoryTable predicted_;
};

}  // namespace flashshard
