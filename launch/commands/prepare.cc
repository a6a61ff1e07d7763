#include "runtime/data/prepare.h"

#include <fmt/format.h>

#include <memory>

#include "launch/commands/commands.h"
#include "runtime/metrics/number_format.h"

namespace flashshard::launch {
namespace {

ExitCode run(const data::PrepareOptions& options) {
  const data::PrepareReport report = data::prepare(options);
  fmt::print(
      "{} of text -> {}\n  train       {:>14} tokens in {} shard(s)\n  validation  {:>14} tokens "
      "in {} shard(s)\n"
      "  vocabulary             256 bytes\n  fingerprint {}\n",
      metrics::format_bytes(report.input_bytes), options.output.string(),
      metrics::with_thousands(report.train_tokens), report.train_shards,
      metrics::with_thousands(report.validation_tokens), report.validation_shards,
      report.fingerprint);
  return ExitCode::kDone;
}

}  // namespace

void add_prepare(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("prepare", "Turn text files into token shards");
  auto options = std::make_shared<data::PrepareOptions>();
  command->add_option("--input", options->inputs, "Text files, read in this order")->required();
  command
      ->add_option("--output", options->output, "Folder to make, or an earlier output of prepare")
      ->required();
  command
      ->add_option("--validation-fraction", options->validation_fraction,
                   "Share of the text that is held out, in blocks spread over it")
      ->capture_default_str();
  command->footer(
      "Examples:\n  flashshard prepare --input book.txt --output data/book\n"
      "  flashshard prepare --input a.txt b.txt --output data/ab --validation-fraction 0.01");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace flashshard::launch
