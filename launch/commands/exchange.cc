// export, import: checkpoints to and from other programs.
#include <fmt/format.h>

#include <map>
#include <memory>
#include <string>

#include "launch/commands/commands.h"
#include "runtime/exchange/hugging_face_export.h"
#include "runtime/exchange/hugging_face_import.h"
#include "runtime/metrics/number_format.h"

namespace flashshard::launch {
namespace {

const std::map<std::string, DType> kTypes = {{"bf16", DType::kBF16}, {"fp32", DType::kFP32}};

struct ExportArguments {
  exchange::ExportRequest request;
  std::string format;
  std::string dtype = "bf16";
  bool no_tokenizer = false;
};

ExitCode run_export(const ExportArguments& arguments) {
  exchange::ExportRequest request = arguments.request;
  request.dtype = kTypes.at(arguments.dtype);
  request.tokenizer = !arguments.no_tokenizer;
  const exchange::ExportResult result = exchange::export_hugging_face(request);
  fmt::print("{}: {} parameters in {} tensors, {} of {} weights in {} file(s)\n", request.output,
             metrics::with_thousands(result.parameters), result.tensors,
             metrics::format_bytes(static_cast<int64_t>(result.bytes)), arguments.dtype,
             result.files);
  return ExitCode::kDone;
}

struct ImportArguments {
  exchange::ImportRequest request;
  std::string dtype = "bf16";
};

ExitCode run_import(const ImportArguments& arguments) {
  exchange::ImportRequest request = arguments.request;
  request.dtype = kTypes.at(arguments.dtype);
  const exchange::ImportResult result = exchange::import_hugging_face(request);
  for (const std::string& warning : result.warnings) {
    fmt::print(stderr, "warning: {}\n", warning);
  }
  fmt::print(
      "{}: {} parameters{}, hash {}\n", result.path, metrics::with_thousands(result.parameters),
      result.tokenizer.empty() ? "" : ", tokenizer " + result.tokenizer, result.hash.total().hex());
  return ExitCode::kDone;
}

}  // namespace

void add_export(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("export", "Write a checkpoint's model for other programs");
  auto arguments = std::make_shared<ExportArguments>();
  exchange::ExportRequest& request = arguments->request;
  command->add_option("CKPT", request.checkpoint, "A checkpoint, or a run's folder: its newest")
      ->required();
  command->add_option("--format", arguments->format, "hf: a Hugging Face model folder")
      ->check(CLI::IsMember({"hf"}))
      ->required();
  command
      ->add_option(
          "--dtype", arguments->dtype,
          "bf16: the weights that the model computes with; fp32: the master weights, exact")
      ->check(CLI::IsMember({"bf16", "fp32"}))
      ->capture_default_str();
  command->add_option("--output", request.output, "Folder to make")->required();
  command
      ->add_option("--shard-bytes", request.shard_bytes,
                   "Most bytes of weights in a file; a larger tensor has a file of its own")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--no-tokenizer", arguments->no_tokenizer, "Leave the tokenizer out");
  command->footer(
      "Examples:\n  flashshard export runs/quickstart --format hf --output exported\n"
      "  flashshard export runs/quickstart --format hf --dtype fp32 --output exact");
  command->callback(
      [arguments, &action] { action = [arguments] { return run_export(*arguments); }; });
}

void add_import(CLI::App& app, Action& action) {
  auto* command =
      app.add_subcommand("import", "Turn a Hugging Face model folder into a checkpoint");
  auto arguments = std::make_shared<ImportArguments>();
  exchange::ImportRequest& request = arguments->request;
  command
      ->add_option("--from-hf", request.folder,
                   "Folder with config.json and safetensors: Llama 3.x or Qwen2.5")
      ->required();
  command
      ->add_option("--output", request.output,
                   "Folder to make: for model.initialize_from, eval and generate")
      ->required();
  command->add_option("--dtype", arguments->dtype, "model.dtype of the runs that start with it")
      ->check(CLI::IsMember({"bf16", "fp32"}))
      ->capture_default_str();
  command
      ->add_option(
          "--master-weight-bits", request.master_weight_bits,
          "What of fp32 weights is kept in bf16 models: 24 bits, all 32, or 0 for the bf16 "
          "weight alone")
      ->check(CLI::IsMember({0, 24, 32}))
      ->capture_default_str();
  command->footer(
      "Example:\n  flashshard import --from-hf Llama-3.2-1B --output models/llama\n"
      "  flashshard train --config RUN.textproto --set model.preset=llama-3.2-1b --set "
      "model.initialize_from=models/llama");
  command->callback(
      [arguments, &action] { action = [arguments] { return run_import(*arguments); }; });
}

}  // namespace flashshard::launch
