#include "runtime/trained_model.h"

#include <fmt/format.h>

#include <vector>

#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/load.h"
#include "runtime/config/run_config.h"
#include "runtime/engine.h"

namespace flashshard {

TrainedModel::TrainedModel(const std::string& checkpoint, const Communicator& communicator, Use use)
    : path_(checkpoint::resolve(checkpoint)) {
  const checkpoint::RunState run = checkpoint::read_run_state(path_);
  step_ = run.step;
  const proto::RunConfig config = parse_run_config(run.config, path_ + ": its configuration", {});
  const LlamaOptions options = llama_options(config, 0);
  batch_ = use == Use::kBatches ? config.train().micro_batch() : 1;
  backend_ = make_cpu_backend({threads_of(config, communicator)});
  ledger_ = std::make_unique<MemoryLedger>(*backend_);
  const ActivationUse activations =
      use == Use::kBatches ? ActivationUse::kInference : ActivationUse::kGeneration;
  model_ = std::make_unique<Llama>(
      *ledger_, options, ActivationShape{batch_, config.train().sequence_length(), activations});
  std::vector<Tensor> weights;
  for (const ParameterSpec& parameter : model_->parameters()) {
    weights.push_back(
        ledger_->tensor(MemoryClass::kWeights, options.dtype, {parameter.rows, parameter.cols}));
  }
  checkpoint::read_weights(path_, model_->parameters(), weights);
  model_->bind(weights, {});
}

void TrainedModel::require_vocabulary(int64_t vocab_size) const {
  if (vocab_size <= model_->vocabulary_size()) return;
  throw Error(ExitCode::kUsage,
              fmt::format("the data's vocabulary of {} tokens does not fit the model's {}",
                          vocab_size, model_->vocabulary_size()),
              path_, "evaluate on data made with the model's tokenizer");
}

}  // namespace flashshard
