#include "runtime/trained_model.h"

#include <fmt/format.h>

#include <filesystem>
#include <vector>

#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/load.h"
#include "runtime/config/run_config.h"
#include "runtime/engine.h"
#include "runtime/run_checkpoint.h"

namespace flashshard {

TrainedModel::TrainedModel(const std::string& checkpoint, Communicator& communicator, Use use)
    : share_(share_processors(communicator)),
      path_(checkpoint::resolve(checkpoint)),
      run_(checkpoint::read_run_state(path_)) {
  const proto::RunConfig config = parse_run_config(run_.config, path_ + ": its configuration", {});
  data_path_ = config.data().path();
  const LlamaOptions options = llama_options(config, 0);
  attention_ = attention_scope(config);
  batch_ = use == Use::kBatches ? config.train().micro_batch() : 1;
  backend_ = make_cpu_backend({settle_threads(config, share_).threads});
  ledger_ = std::make_unique<MemoryLedger>(*backend_);
  const ActivationUse activations =
      use == Use::kBatches ? ActivationUse::kInference : ActivationUse::kGeneration;
  ActivationShape shape{batch_, config.train().sequence_length(), activations};
  // A text that is written is one document.
  if (use == Use::kBatches) shape.attention = attention_;
  model_ = std::make_unique<Llama>(*ledger_, options, shape);
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
  throw Error(ExitCode::kBadData,
              fmt::format("the data's vocabulary of {} tokens does not fit the model's {}",
                          vocab_size, model_->vocabulary_size()),
              path_, "evaluate on data made with the model's tokenizer");
}

void TrainedModel::require_tokenizer(const data::DatasetManifest& data) const {
  require_same_tokenizer(run_, path_, data);
  require_vocabulary(data.vocab_size);
}

std::unique_ptr<data::Tokenizer> TrainedModel::open_tokenizer() const {
  const auto identity = tokenizer_of(run_);
  if (!identity) {
    // Before tokenizers were recorded there were only bytes, and nothing ended a document.
    if (model_->vocabulary_size() == 256) return data::make_tokenizer("byte");
    throw Error(ExitCode::kUsage, "the checkpoint does not name its tokenizer", path_,
                "name it with --tokenizer");
  }
  return data::open_tokenizer(*identity, tokenizer_folder(path_, data_path_));
}

}  // namespace flashshard
