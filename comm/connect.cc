#include "comm/connect.h"

#include <cstdlib>
#include <string_view>
#include <utility>

#include "comm/call.h"
#include "comm/threads.h"

#ifdef FLASHSHARD_MPI
#include "comm/mpi.h"
#endif

namespace flashshard {

bool launched_by_mpi() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

std::unique_ptr<Communicator> connect_ranks(std::chrono::duration<double> deadline) {
  check_deadline(deadline);
  if (launched_by_mpi()) {
#ifdef FLASHSHARD_MPI
    return make_mpi_communicator(std::make_shared<MpiEnvironment>(deadline),
                                 {.deadline = deadline});
#else
    // Each rank would take itself for the whole run, all of them in one run folder.
    throw Error(ExitCode::kUsage, "started by an MPI launcher, but built without MPI", "connecting",
                "build with -DFLASHSHARD_MPI=ON, or start one process without a launcher");
#endif
  }
  // An MPI "singleton" would start a daemon of its own for one rank: slow, and one more thing to
  // fail.
  auto communicator = std::move(make_thread_communicators(1).front());
  communicator->set_deadline(deadline);
  return communicator;
}

}  // namespace flashshard
