// bench: the project's measurements.
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <string>

#include "launch/bench/optimizer_bench.h"
#include "launch/commands/commands.h"
#include "runtime/metrics/durable_file.h"

namespace flashshard::launch {
namespace {

struct BenchArguments {
  OptimizerBenchOptions optimizer;
  std::string json;
};

ExitCode run(const BenchArguments& arguments) {
  // Minutes of measuring for a file that cannot be written would be a pity.
  // A file that is there keeps its measurements until there are new ones.
  if (!arguments.json.empty() && !std::filesystem::is_regular_file(arguments.json)) {
    metrics::replace_file(arguments.json, "", metrics::Durability::kAtomic);
    std::filesystem::remove(arguments.json);
  }
  const auto rows = bench_optimizer(arguments.optimizer);
  fmt::print("{}", to_text(arguments.optimizer, rows));
  if (!arguments.json.empty()) {
    metrics::replace_file(arguments.json, to_json(arguments.optimizer, rows).dump(1) + "\n",
                          metrics::Durability::kAtomic);
  }
  return ExitCode::kDone;
}

void add_choices(CLI::App& command, OptimizerBenchOptions& options) {
  command.add_option("--rule", options.rules, "Rules; all when left out")
      ->check(CLI::IsMember({"ADAMW", "ADAM", "LION", "SGD", "SGDW"}));
  command.add_option("--format", options.formats, "State formats; all when left out")
      ->check(CLI::IsMember({"V2", "FLASHOPTIM_V1", "FP32"}));
  command
      .add_option("--master", options.master_bits,
                  "Bits of the master weight, 0: the bf16 weight alone; all when left out")
      ->check(CLI::IsMember({24, 32, 0}));
  command.add_option("--isa", options.instruction_sets,
                     "Instruction sets (scalar, avx2, avx512, neon); all of this machine when left "
                     "out");
  command.add_flag("--health", options.health,
                   "Each loop once more, counting the health of the states as in training");
  command
      .add_option(
          "--rounding", options.rounding,
          "STOCHASTIC or NEAREST, of weights and codes of moments; FLASHOPTIM_V1 has NEAREST "
          "alone")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Rounding>{
          {"STOCHASTIC", Rounding::kStochastic}, {"NEAREST", Rounding::kNearest}}))
      ->option_text("NAME [STOCHASTIC]");
}

void add_optimizer(CLI::App& bench, Action& action) {
  auto* command = bench.add_subcommand(
      "optimizer",
      "A step of every rule, format and instruction set, beside a copy of its bytes; ADAMW's "
      "main formats beside plain loops, too");
  auto arguments = std::make_shared<BenchArguments>();
  OptimizerBenchOptions& options = arguments->optimizer;
  command
      ->add_option("--elements", options.elements,
                   "Parameters, a multiple of 32; all formats together take about 75 bytes each")
      ->check(CLI::Range(int64_t{32}, int64_t{1} << 36))
      ->check([](const std::string& text) {
        return std::stoll(text) % kGroup == 0 ? "" : text + " is not a multiple of 32";
      })
      ->capture_default_str();
  command->add_option("--threads", options.threads, "Threads that share a step")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command
      ->add_option("--repeat", options.repeat,
                   "Rounds, of which the median counts; scalar loops run in at most three")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  add_choices(*command, options);
  command->add_option("--json", arguments->json, "Write the measurements to this file, too");
  command->footer(
      "Examples:\n  flashshard bench optimizer --json optimizer.json\n"
      "  flashshard bench optimizer --rule ADAMW --format V2 FLASHOPTIM_V1 --master 24 --isa avx2 "
      "--elements 67108864 --repeat 15\n"
      "  flashshard bench optimizer --rule ADAMW --format V2 --master 24 --health --repeat 31\n"
      "  flashshard bench optimizer --rule LION --threads 2");
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("bench", "Measure this machine");
  command->require_subcommand(1);
  add_optimizer(*command, action);
}

}  // namespace flashshard::launch
