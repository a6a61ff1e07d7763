#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "launch/commands/commands.h"
#include "launch/commands/ranks.h"
#include "runtime/agreement.h"
#include "runtime/data/token_dataset.h"
#include "runtime/evaluate.h"
#include "runtime/metrics/number_format.h"
#include "runtime/trained_model.h"

namespace flashshard::launch {
namespace {

struct EvalArguments {
  std::string checkpoint;
  std::string data;
  int64_t sequences = 0;
  bool json = false;
};

constexpr std::chrono::seconds kDeadline{600};

struct EvalResult {
  Evaluation evaluation;
  std::optional<double> bits_per_byte;  // where the data tells how many bytes a token stands for
};

void print_json(const EvalResult& result, const TrainedModel& model) {
  const Evaluation& e = result.evaluation;
  nlohmann::ordered_json object = {
      {"checkpoint", model.path()},   {"step", model.step()},
      {"tokens", e.tokens},           {"loss", e.mean_loss()},
      {"perplexity", e.perplexity()}, {"bits_per_token", e.bits_per_token()},
      {"bits_per_byte", nullptr}};
  if (result.bits_per_byte) object["bits_per_byte"] = *result.bits_per_byte;
  fmt::print("{}\n", object.dump());
}

void print_table(const EvalResult& result, const TrainedModel& model) {
  const Evaluation& e = result.evaluation;
  fmt::print(
      "{} (step {})\n  tokens          {}\n  loss            {:.4f} nats per token\n"
      "  perplexity      {:.4f}\n  bits per token  {:.4f}\n  bits per byte   {}\n",
      model.path(), model.step(), metrics::with_thousands(e.tokens), e.mean_loss(), e.perplexity(),
      e.bits_per_token(),
      result.bits_per_byte ? fmt::format("{:.4f}", *result.bits_per_byte)
                           : "unknown: the data does not say how many bytes its tokens stand for");
}

ExitCode run(const EvalArguments& arguments) {
  return run_ranks(kDeadline, [&](Communicator& communicator) {
    std::unique_ptr<TrainedModel> model;
    std::unique_ptr<data::TokenDataset> dataset;
    run_and_agree(communicator, [&] {
      model = std::make_unique<TrainedModel>(arguments.checkpoint, communicator,
                                             TrainedModel::Use::kBatches);
      dataset = std::make_unique<data::TokenDataset>(
          data::TokenDataset::open_for_evaluation(arguments.data));
      model->require_tokenizer(dataset->manifest());
      if (model->attention() == AttentionScope::kDocument) dataset->require_documents();
    });
    const EvaluationRequest request{model->batch(), model->model().maximum_sequence_length(),
                                    arguments.sequences, model->attention()};
    EvalResult result;
    result.evaluation = evaluate(communicator, model->model(), *dataset, request);
    if (result.evaluation.tokens == 0) {
      throw AgreedError(ExitCode::kBadData,
                        "no token of these sequences counts in the loss. Hint: evaluate more of "
                        "them, or prepare the data with a larger --validation-fraction");
    }
    const auto bytes = dataset->manifest().bytes_per_token(dataset->split());
    if (bytes) result.bits_per_byte = result.evaluation.bits_per_byte(*bytes);
    if (communicator.rank() == 0) {
      arguments.json ? print_json(result, *model) : print_table(result, *model);
    }
    return ExitCode::kDone;
  });
}

}  // namespace

void add_eval(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("eval", "Loss, perplexity and bits per byte on held-out text");
  auto arguments = std::make_shared<EvalArguments>();
  command
      ->add_option("--checkpoint", arguments->checkpoint,
                   "A checkpoint, or a run's folder: its newest")
      ->required();
  command
      ->add_option("--data", arguments->data,
                   "Folder that prepare made: its validation split is read; or shards of llm.c or "
                   "Megatron: files with _val in their names, or one file as it is")
      ->required();
  command
      ->add_option("--sequences", arguments->sequences,
                   "Use so many sequences, spread over the split; 0: all")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--json", arguments->json, "One JSON object");
  command->footer(
      "Examples:\n  flashshard eval --checkpoint runs/quickstart --data data/kjv\n"
      "  mpirun -n 2 flashshard eval --checkpoint runs/quickstart/checkpoints/step-00000490 --data "
      "data/kjv --json");
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace flashshard::launch
