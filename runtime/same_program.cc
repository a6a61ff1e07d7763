#include "runtime/same_program.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <string>

#include "runtime/agreement.h"
#include "runtime/data/file.h"

namespace flashshard {
namespace {

std::string program_hash() {
  const data::MappedFile file("/proc/self/exe");
  return fmt::format("{:016x}", XXH3_64bits(file.bytes().data(), file.bytes().size()));
}

}  // namespace

void require_same_program(Communicator& communicator, std::string_view environment) {
  std::string program;
  run_and_agree(communicator, [&] { program = program_hash(); });
  const std::string first_program =
      broadcast_text(communicator, "waiting for rank 0's program", program);
  const std::string first_environment = broadcast_text(
      communicator, "waiting for what rank 0 computes with", std::string(environment));
  run_and_agree(communicator, [&] {
    if (program != first_program) {
      throw Error(
          ExitCode::kUsage,
          fmt::format("this rank runs another build of flashshard (hash {}) than rank 0 ({})",
                      program, first_program),
          std::string(communicator.host(communicator.rank())),
          "start all ranks from one installation");
    }
    if (environment != first_environment) {
      throw Error(ExitCode::kUsage,
                  fmt::format("a reproducible run needs ranks that compute alike: this one with "
                              "`{}`, rank 0 with `{}`",
                              environment, first_environment),
                  std::string(communicator.host(communicator.rank())),
                  "use hosts of one kind, or set parallelism.reproducible to false");
    }
  });
}

}  // namespace flashshard
