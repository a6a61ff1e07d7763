// The subcommands of `flashshard`. Each adds its options and examples to the parser and, when it
// was called, leaves in `action` what main() runs. Names of options and files are docs/cli.md's.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "kernels/error.h"

namespace flashshard::launch {

using Action = std::function<ExitCode()>;

void add_prepare(CLI::App& app, Action& action);
void add_train(CLI::App& app, Action& action);
void add_eval(CLI::App& app, Action& action);
void add_generate(CLI::App& app, Action& action);
void add_inspect(CLI::App& app, Action& action);
void add_verify(CLI::App& app, Action& action);
void add_hash(CLI::App& app, Action& action);
void add_reshard(CLI::App& app, Action& action);
void add_export(CLI::App& app, Action& action);
void add_import(CLI::App& app, Action& action);
void add_bench(CLI::App& app, Action& action);

}  // namespace flashshard::launch
