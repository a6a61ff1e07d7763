// flashshard: the front door. Parses the command line, runs one subcommand, and turns every failure
// into one clear line and a documented exit code.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>

#include "kernels/error.h"
#include "launch/commands/commands.h"

namespace {

using flashshard::Error;
using flashshard::ExitCode;

int report(ExitCode code, const char* message) {
  std::fprintf(stderr, "error: %s\n", message);
  return static_cast<int>(code);
}

int run(const flashshard::launch::Action& action) {
  try {
    return static_cast<int>(action());
  } catch (const Error& error) {
    return report(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return report(ExitCode::kOutOfSpace, "out of memory");
  } catch (const std::exception& error) {
    return report(ExitCode::kInternal, error.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Trains language models with sharded, compressed optimizer state.\n"
      "Run `flashshard COMMAND --help` for a command's options and examples.",
      "flashshard"};
  app.set_version_flag("--version", FLASHSHARD_VERSION);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::simple);
  flashshard::launch::Action action;
  for (auto* add : {flashshard::launch::add_prepare, flashshard::launch::add_train,
                    flashshard::launch::add_eval, flashshard::launch::add_generate,
                    flashshard::launch::add_inspect, flashshard::launch::add_verify,
                    flashshard::launch::add_hash}) {
    add(app, action);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version are no errors; everything else is bad usage.
    if (error.get_exit_code() == 0) return app.exit(error);
    return report(ExitCode::kUsage, error.what());
  }
  return run(action);
}
