#include "runtime/evaluate.h"

#include <vector>

#include "runtime/agreement.h"
#include "runtime/data/validation_windows.h"

namespace flashshard {

Evaluation evaluate(Communicator& communicator, Model& model, const data::TokenDataset& dataset,
                    const EvaluationRequest& request) {
  data::ValidationWindows::Options options;
  options.sequence_length = request.sequence_length;
  options.most_sequences = request.most_sequences;
  const data::ValidationWindows windows(dataset, options);
  const auto tokens = static_cast<size_t>(request.micro_batch * request.sequence_length);
  std::vector<int32_t> inputs(tokens), targets(tokens), document_starts;
  if (request.attention == AttentionScope::kDocument) document_starts.resize(tokens);

  std::vector<Evaluation> ranks(static_cast<size_t>(communicator.world_size()));
  Evaluation& own = ranks[static_cast<size_t>(communicator.rank())];
  const int64_t stride = request.micro_batch * communicator.world_size();
  for (int64_t first = request.micro_batch * communicator.rank(); first < windows.size();
       first += stride) {
    windows.fill(first, request.micro_batch, {inputs, targets, document_starts});
    const LossResult loss = model.evaluate(
        {inputs, targets, request.micro_batch, request.sequence_length, document_starts});
    own.loss_sum += loss.loss_sum;
    own.tokens += loss.token_count;
  }
  gather_plain(communicator, "waiting for the losses of a validation", std::span(ranks));
  Evaluation all;
  for (const Evaluation& rank : ranks) {
    all.loss_sum += rank.loss_sum;
    all.tokens += rank.tokens;
  }
  return all;
}

}  // namespace flashshard
