// inspect, verify, hash: what a checkpoint holds, whether it is whole, and one number for its
// content; reshard: the same content for another number of ranks.
#include <fmt/format.h>

#include <memory>
#include <string>

#include "launch/commands/commands.h"
#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/inspect.h"
#include "runtime/checkpoint/reshard.h"
#include "runtime/checkpoint/verify.h"
#include "runtime/run_checkpoint.h"

namespace flashshard::launch {
namespace {

struct CheckpointArguments {
  std::string checkpoint;
  bool json = false;
};

ExitCode inspect(const CheckpointArguments& arguments) {
  const checkpoint::Inspection inspection = checkpoint::inspect(arguments.checkpoint);
  fmt::print("{}\n",
             arguments.json ? checkpoint::to_json(inspection) : checkpoint::to_text(inspection));
  return ExitCode::kDone;
}

ExitCode verify(const CheckpointArguments& arguments) {
  const checkpoint::Verification result = checkpoint::verify(arguments.checkpoint);
  if (arguments.json) {
    fmt::print("{}\n", checkpoint::to_json(result));
  } else {
    for (const auto& finding : result.findings) fmt::print("{}\n", checkpoint::to_text(finding));
    if (result.findings.empty()) fmt::print("{} is whole\n", result.path);
  }
  if (result.findings.empty()) return ExitCode::kDone;
  throw Error(ExitCode::kCheckpoint, fmt::format("{} thing(s) wrong", result.findings.size()),
              result.path, "resume from an earlier checkpoint of the run");
}

ExitCode hash(const CheckpointArguments& arguments) {
  const checkpoint::LogicalHash hash = checkpoint::hash(arguments.checkpoint);
  fmt::print("{}\n", arguments.json ? checkpoint::to_json(hash) : hash.total().hex());
  return ExitCode::kDone;
}

ExitCode run_reshard(checkpoint::ReshardRequest request) {
  // Chosen once: the run that it belongs to may be saving.
  request.source = checkpoint::resolve(request.source);
  checkpoint::ReshardResult result = checkpoint::reshard(request);
  try {
    copy_tokenizer(request.source, result.path);
  } catch (const Error& error) {
    // The checkpoint is safe.
    result.warnings.push_back(fmt::format("its tokenizer was not copied: {}", error.what()));
  }
  for (const std::string& warning : result.warnings) {
    fmt::print(stderr, "warning: {}\n", warning);
  }
  fmt::print("{} for {} rank{}, hash {}\n", result.path, request.ranks,
             request.ranks == 1 ? "" : "s", result.hash.total().hex());
  return ExitCode::kDone;
}

using Run = ExitCode (*)(const CheckpointArguments&);

void add(CLI::App& app, Action& action, const char* name, const char* what, Run run) {
  auto* command = app.add_subcommand(name, what);
  auto arguments = std::make_shared<CheckpointArguments>();
  command->add_option("CKPT", arguments->checkpoint, "A checkpoint, or a run's folder: its newest")
      ->required();
  command->add_flag("--json", arguments->json, "One JSON object");
  command->footer(
      fmt::format("Examples:\n  flashshard {0} runs/quickstart\n  flashshard {0} "
                  "runs/quickstart/checkpoints/step-00000200 --json",
                  name));
  command->callback(
      [arguments, run, &action] { action = [arguments, run] { return run(*arguments); }; });
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
  add(app, action, "inspect", "What a checkpoint holds: step, model, bytes by class", inspect);
}
void add_verify(CLI::App& app, Action& action) {
  add(app, action, "verify", "Read every byte of a checkpoint and say what is wrong with it",
      verify);
}
void add_hash(CLI::App& app, Action& action) {
  add(app, action, "hash", "One hash of a checkpoint's logical content, whatever its sharding",
      hash);
}

void add_reshard(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("reshard", "Rewrite a checkpoint for another number of ranks");
  auto request = std::make_shared<checkpoint::ReshardRequest>();
  command->add_option("CKPT", request->source, "A checkpoint, or a run's folder: its newest")
      ->required();
  command->add_option("--ranks", request->ranks, "Ranks that the new checkpoint is for")
      ->check(CLI::Range(1, 65536))
      ->required();
  command
      ->add_option("--zstd-level", request->zstd_level,
                   "Write the shard files under zstd at this level; 0: as plain safetensors")
      ->check(CLI::Range(0, 19))
      ->capture_default_str();
  command
      ->add_option("--output", request->folder,
                   "Folder of checkpoints that gets the new one, under the name of its step")
      ->required();
  command->footer(
      "A run resumes at any number of ranks without it.\n"
      "Examples:\n  flashshard reshard runs/quickstart --ranks 8 --output runs/for-8/checkpoints\n"
      "  flashshard reshard runs/quickstart --ranks 1 --zstd-level 1 --output archive/checkpoints");
  command->callback([request, &action] { action = [request] { return run_reshard(*request); }; });
}

}  // namespace flashshard::launch
