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
      "  documents   {:>14}\n  vocabulary  {:>14} {}\n",
      metrics::format_bytes(report.input_bytes), options.output.string(),
      metrics::with_thousands(report.train_tokens), report.train_shards,
      metrics::with_thousands(report.validation_tokens), report.validation_shards,
      metrics::with_thousands(report.train_totals.documents + report.validation_totals.documents),
      metrics::with_thousands(report.tokenizer.vocab_size),
      report.tokenizer.kind == "byte" ? "bytes" : report.tokenizer.kind + " tokens");
  const int64_t counted = report.train_totals.counted + report.validation_totals.counted;
  if (counted < report.train_tokens + report.validation_tokens) {
    fmt::print("  in the loss {:>14} tokens\n", metrics::with_thousands(counted));
  }
  fmt::print("  fingerprint {}\n", report.fingerprint);
  return ExitCode::kDone;
}

}  // namespace

void add_prepare(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("prepare", "Turn text or JSONL files into token shards");
  auto options = std::make_shared<data::PrepareOptions>();
  command->add_option("--input", options->inputs, "Text or JSONL files, read in this order")
      ->required();
  command
      ->add_option("--output", options->output, "Folder to make, or an earlier output of prepare")
      ->required();
  command
      ->add_option("--validation-fraction", options->validation_fraction,
                   "Share of the text that is held out, in blocks spread over it")
      ->capture_default_str();
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "byte, sentencepiece:MODEL or hf:FOLDER (a folder with tokenizer.json; needs "
                   "python3 and its package tokenizers)")
      ->capture_default_str();
  command
      ->add_option("--jsonl-fields", options->jsonl_fields,
                   "The input is JSONL, a document a line: its text's field, or prompt,response "
                   "of which only the response counts in the loss")
      ->delimiter(',');
  command->footer(
      "Examples:\n  flashshard prepare --input book.txt --output data/book\n"
      "  flashshard prepare --input a.txt b.txt --output data/ab --validation-fraction 0.01\n"
      "  flashshard prepare --input book.txt --output data/sp --tokenizer sentencepiece:my.model\n"
      "  flashshard prepare --input pairs.jsonl --output data/pairs --jsonl-fields "
      "prompt,response");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace flashshard::launch
