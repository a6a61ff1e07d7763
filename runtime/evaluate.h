// The loss of a model on held-out text: every token of the split counts once, whatever the world
// size.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <numbers>

#include "comm/communicator.h"
#include "runtime/data/token_dataset.h"
#include "runtime/model/model.h"

namespace flashshard {

struct EvaluationRequest {
  int64_t micro_batch = 1;      // sequences at once; at most what the model was made for
  int64_t sequence_length = 0;  // tokens
  int64_t most_sequences = 0;   // 0: the whole split
  AttentionScope attention = AttentionScope::kSequence;  // as the model was trained
};

struct Evaluation {
  double loss_sum = 0;  // nats
  int64_t tokens = 0;

  double mean_loss() const { return loss_sum / static_cast<double>(tokens); }
  double perplexity() const { return std::exp(mean_loss()); }
  double bits_per_token() const { return mean_loss() / std::numbers::ln2; }
  /// Comparable between tokenizers; `bytes_per_token` of the text that was read
  /// (DatasetManifest::bytes_per_token).
  double bits_per_byte(double bytes_per_token) const { return bits_per_token() / bytes_per_token; }
};

/// The loss of a micro-batch; null: this rank has none in a round in which others have.
using EvaluationPass = std::function<LossResult(const MicroBatchView*)>;

/// Collective: rank r takes micro-batches r, r + N, ...; losses are added in their order, whatever
/// N. Throws Error(kBadData), also for data without documents where attention stays within them.
Evaluation evaluate(Communicator& communicator, const EvaluationPass& pass,
                    const data::TokenDataset& dataset, const EvaluationRequest& request);
/// The same with a model that holds its weights whole.
Evaluation evaluate(Communicator& communicator, Model& model, const data::TokenDataset& dataset,
                    const EvaluationRequest& request);

}  // namespace flashshard
