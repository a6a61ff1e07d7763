// A model read from a checkpoint for evaluation and text: weights alone, no gradients, no optimizer
// state.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "optim/memory.h"
#include "proto/run.pb.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/data/dataset_manifest.h"
#include "runtime/model/llama.h"
#include "runtime/thread_placement.h"

namespace flashshard {

class TrainedModel {
 public:
  /// Losses of batches, or one text that grows token by token.
  enum class Use : uint8_t { kBatches, kText };

  /// `checkpoint`: a step folder, a checkpoints folder or a run's folder (the newest complete).
  /// Settles the calling thread (thread_placement.h). Collective, and nothing is asked of the other
  /// ranks after the first error. Throws Error(kUsage, kCheckpoint, kOutOfSpace).
  TrainedModel(const std::string& checkpoint, Communicator& communicator, Use use);

  Model& model() { return *model_; }
  const std::string& path() const { return path_; }
  int64_t step() const { return run_.step; }
  /// Sequences that the model takes at once.
  int64_t batch() const { return batch_; }
  /// What a token attended to in training, and should in an evaluation.
  AttentionScope attention() const { return attention_; }
  /// Throws Error(kUsage) when text of another vocabulary is to be read.
  void require_vocabulary(int64_t vocab_size) const;
  /// The same, and text of another tokenizer.
  void require_tokenizer(const data::DatasetManifest& data) const;
  /// The tokenizer of the data that the model was trained on, from the run's folder or else from
  /// that data's. Throws Error(kUsage) when the checkpoint names none, Error(kBadData) when its
  /// files are gone.
  std::unique_ptr<data::Tokenizer> open_tokenizer() const;

 private:
  ProcessorShare share_;  // first: ranks compare before anything can fail
  std::string path_;
  std::string data_path_;
  checkpoint::RunState run_;
  int64_t batch_ = 1;
  AttentionScope attention_ = AttentionScope::kSequence;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<MemoryLedger> ledger_;
  std::unique_ptr<Llama> model_;
};

}  // namespace flashshard
