#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "launch/commands/commands.h"
#include "launch/commands/ranks.h"
#include "runtime/agreement.h"
#include "runtime/config/reference.h"
#include "runtime/config/run_config.h"
#include "runtime/trainer.h"

namespace flashshard::launch {
namespace {

struct TrainArguments {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume = "auto";
  std::string profile;
};

// Until the configuration is read nobody knows the run's own deadline.
constexpr std::chrono::seconds kConnectDeadline{120};

// Rank 0 reads the files; the others get what it resolved, so that all ranks run the same
// configuration.
proto::RunConfig shared_config(Communicator& communicator, const TrainArguments& arguments) {
  std::string text;
  run_and_agree(communicator, [&] {
    if (communicator.rank() != 0) return;
    std::vector<std::string> overrides = arguments.overrides;
    if (!arguments.profile.empty()) overrides.push_back("run.profile=" + arguments.profile);
    text = to_text(load_run_config(arguments.config, overrides));
  });
  text = broadcast_text(communicator, "waiting for the configuration", std::move(text));
  return parse_run_config(text, "the configuration of rank 0", {});
}

ExitCode run(const TrainArguments& arguments) {
  return run_ranks(kConnectDeadline, [&](Communicator& communicator) {
    TrainRequest request;
    request.config = shared_config(communicator, arguments);
    request.resume = arguments.resume;
    communicator.set_deadline(
        std::chrono::duration<double>(request.config.run().deadline_seconds()));
    return train(communicator, request);
  });
}

}  // namespace

void add_train(CLI::App& app, Action& action) {
  auto* command =
      app.add_subcommand("train", "Train a model: alone, or on N ranks under mpirun -n N");
  auto arguments = std::make_shared<TrainArguments>();
  command->add_option("--config", arguments->config, "The run's settings (protobuf text format)")
      ->required();
  command
      ->add_option("--set", arguments->overrides,
                   "A setting that wins over the file, as path=value; may be repeated")
      ->take_all();
  command
      ->add_option("--resume", arguments->resume,
                   "auto: go on from run.dir's newest complete checkpoint; never: refuse if there "
                   "is one; or a checkpoint's path")
      ->capture_default_str();
  command->add_option("--profile", arguments->profile,
                      "Record this step's operations in run.dir/profile (Chrome trace events)");
  command->footer([] {
    return "Examples:\n"
           "  flashshard train --config launch/configs/quickstart.textproto\n"
           "  mpirun -n 2 flashshard train --config launch/configs/quickstart.textproto --set "
           "train.steps=50\n"
           "  flashshard train --config launch/configs/quickstart.textproto --profile 5\n"
           "\nA running job saves and ends (exit code 8) on SIGUSR1, SIGUSR2 or when the file "
           "run.dir/stop appears.\n"
           "\nSettings:\n" +
           field_help();
  });
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace flashshard::launch
