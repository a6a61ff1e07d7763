#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <string>

#include "comm/threads.h"
#include "launch/commands/commands.h"
#include "runtime/trained_model.h"
#include "runtime/write_text.h"

namespace flashshard::launch {
namespace {

struct GenerateArguments {
  std::string checkpoint;
  std::string tokenizer;  // empty: the checkpoint's
  GenerationRequest request;
};

ExitCode run(const GenerateArguments& arguments) {
  const auto alone = std::move(make_thread_communicators(1).front());
  TrainedModel model(arguments.checkpoint, *alone, TrainedModel::Use::kText);
  const auto tokenizer = arguments.tokenizer.empty() ? model.open_tokenizer()
                                                     : data::make_tokenizer(arguments.tokenizer);
  std::fputs(arguments.request.prompt.c_str(), stdout);
  const WrittenText written =
      write_text(model.model(), *tokenizer, arguments.request, [](std::string_view text) {
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
      });
  std::fputc('\n', stdout);
  std::fflush(stdout);
  const GenerationTimes& times = written.times;
  if (times.tokens > 0) {
    fmt::print(stderr, "prompt read in {:.1f} ms, then {:.0f} tokens per second\n",
               1e3 * times.prompt_seconds, times.tokens_per_second());
  }
  return ExitCode::kDone;
}

}  // namespace

void add_generate(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("generate", "Text from a trained model");
  auto arguments = std::make_shared<GenerateArguments>();
  GenerationRequest& request = arguments->request;
  command
      ->add_option("--checkpoint", arguments->checkpoint,
                   "A checkpoint, or a run's folder: its newest")
      ->required();
  command->add_option("--prompt", request.prompt, "Text to go on from")->required();
  command
      ->add_option("--tokens", request.options.tokens,
                   "Most tokens to add; fewer when the model ends the document")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command
      ->add_option("--temperature", request.options.sampling.temperature,
                   "0: always the likeliest token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command->add_option("--seed", request.options.sampling.seed, "The same seed gives the same text")
      ->capture_default_str();
  command->add_option("--tokenizer", arguments->tokenizer,
                      "byte, sentencepiece:MODEL or hf:FOLDER, where the checkpoint's own is not "
                      "to be used");
  command->footer(
      "Example:\n  flashshard generate --checkpoint runs/quickstart --prompt \"In the beginning\" "
      "--tokens 300 "
      "--temperature 0.8 --seed 1");
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace flashshard::launch
