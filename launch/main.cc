// flashshard: the front door. Parses the command line, runs one subcommand, and turns every failure
// into one clear line and a documented exit code.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "kernels/error.h"
#include "launch/commands/commands.h"

namespace {

using flashshard::Error;
using flashshard::ExitCode;

/// One line, whatever a file's name or a field holds.
int report(ExitCode code, std::string message) {
  for (char& c : message) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  std::fprintf(stderr, "error: %s\n", message.c_str());
  return static_cast<int>(code);
}

int run(const flashshard::launch::Action& action) {
  try {
    const ExitCode code = action();
    // A script that wrote `hash` to a full disk must not take its empty file for an answer.
    errno = 0;
    if ((std::fflush(stdout) != 0 && errno == ENOSPC) && code == ExitCode::kDone) {
      return report(ExitCode::kOutOfSpace, "cannot write the output: no space left on the device");
    }
    return static_cast<int>(code);
  } catch (const Error& error) {
    return report(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return report(ExitCode::kOutOfSpace, "out of memory");
  } catch (const std::exception& error) {
    return report(ExitCode::kInternal, error.what());
  }
}

/// A standard descriptor that was closed would be given to the next file or connection, and what is
/// printed would go there.
void open_standard_descriptors() {
  int descriptor = 0;
  while (descriptor >= 0 && descriptor <= STDERR_FILENO) descriptor = ::open("/dev/null", O_RDWR);
  if (descriptor > STDERR_FILENO) ::close(descriptor);
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_descriptors();
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
                    flashshard::launch::add_hash, flashshard::launch::add_reshard,
                    flashshard::launch::add_export, flashshard::launch::add_import,
                    flashshard::launch::add_bench}) {
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
