#include "runtime/evaluate.h"

#include <vector>

#include "runtime/data/validation_windows.h"
#include "runtime/losses.h"

namespace flashshard {

Evaluation evaluate(Communicator& communicator, const EvaluationPass& pass,
                    const data::TokenDataset& dataset, const EvaluationRequest& request) {
  data::ValidationWindows::Options options;
  options.sequence_length = request.sequence_length;
  options.most_sequences = request.most_sequences;
  const data::ValidationWindows windows(dataset, options);
  const auto tokens = static_cast<size_t>(request.micro_batch * request.sequence_length);
  std::vector<int32_t> inputs(tokens), targets(tokens), document_starts;
  if (request.attention == AttentionScope::kDocument) document_starts.resize(tokens);

  std::vector<LossResult> own;
  const int64_t stride = request.micro_batch * communicator.world_size();
  const int64_t rounds = (windows.size() + stride - 1) / stride;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t first = round * stride + request.micro_batch * communicator.rank();
    if (first >= windows.size()) {
      pass(nullptr);
      continue;
    }
    windows.fill(first, request.micro_batch, {inputs, targets, document_starts});
    const MicroBatchView batch{inputs, targets, request.micro_batch, request.sequence_length,
                               document_starts};
    own.push_back(pass(&batch));
  }
  const LossResult all =
      sum_in_order(communicator, "waiting for the losses of a validation", own, rounds);
  return {all.loss_sum, all.token_count};
}

Evaluation evaluate(Communicator& communicator, Model& model, const data::TokenDataset& dataset,
                    const EvaluationRequest& request) {
  const auto pass = [&](const MicroBatchView* batch) {
    return batch == nullptr ? LossResult{} : model.evaluate(*batch);
  };
  return evaluate(communicator, EvaluationPass(pass), dataset, request);
}

}  // namespace flashshard
