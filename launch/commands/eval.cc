#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
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

void print(const Evaluation& result, const TrainedModel& model, bool json) {
  if (json) {
    const nlohmann::ordered_json object = {
        {"checkpoint", model.path()},        {"step", model.step()},
        {"tokens", result.tokens},           {"loss", result.mean_loss()},
        {"perplexity", result.perplexity()}, {"bits_per_byte", result.bits_per_token()}};
    fmt::print("{}\n", object.dump());
    return;
  }
  fmt::print(
      "{} (step {})\n  tokens         {}\n  loss           {:.4f} nats per token\n"
      "  perplexity     {:.4f}\n  bits per byte  {:.4f}\n",
      model.path(), model.step(), metrics::with_thousands(result.tokens), result.mean_loss(),
      result.perplexity(), result.bits_per_token());
}

ExitCode run(const EvalArguments& arguments) {
  return run_ranks(kDeadline, [&](Communicator& communicator) {
    std::unique_ptr<TrainedModel> model;
    std::unique_ptr<data::TokenDataset> dataset;
    run_and_agree(communicator, [&] {
      model = std::make_unique<TrainedModel>(arguments.checkpoint, communicator,
                                             TrainedModel::Use::kBatches);
      dataset = std::make_unique<data::TokenDataset>(
          data::TokenDataset::open(arguments.data, data::Split::kValidation));
      model->require_vocabulary(dataset->vocab_size());
    });
    const EvaluationRequest request{model->batch(), model->model().maximum_sequence_length(),
                                    arguments.sequences};
    const Evaluation result = evaluate(communicator, model->model(), *dataset, request);
    if (communicator.rank() == 0) print(result, *model, arguments.json);
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
                   "Folder that prepare made; its validation split is read")
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
