// A small run that goes wrong in the way that its argument says. expect_mpirun.cmake looks at
// mpirun's code and output.
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "comm/connect.h"
#include "comm/mpi.h"

namespace {

using namespace flashshard;
using namespace std::chrono_literals;

/// Stops this process for good. mpirun wakes what it is about to end; a rank that would then go on,
/// into MPI_Finalize of a dying job, can make mpirun 4.1 itself crash in PMIx_server_finalize.
void stop() {
  raise(SIGSTOP);
  for (;;) pause();
}

/// Rank 1 stops dead; the others must name it.
void stop_in_a_reduction(Communicator& comm) {
  std::vector<int64_t> values(10);
  comm.all_reduce(values, ReduceOp::kSum).wait("the first sum");
  if (comm.rank() == 1) stop();
  comm.all_reduce(values, ReduceOp::kSum).wait("the second sum");
}

/// Rank 1 meets an error of its own while the others wait for it.
void abort_alone(Communicator& comm) {
  if (comm.rank() == 1) comm.abort(ExitCode::kBadData);
  comm.barrier().wait("the barrier");
}

/// Rank 1 never comes to MPI_Finalize.
void stop_before_the_end(Communicator& comm) {
  comm.barrier().wait("the barrier");
  if (comm.rank() == 1) stop();
}

void work(Communicator&) {}

using Scenario = void (*)(Communicator&);
Scenario scenario_of(std::string_view name) {
  if (name == "stopped") return stop_in_a_reduction;
  if (name == "abort") return abort_alone;
  if (name == "stopped_at_end") return stop_before_the_end;
  if (name == "stopped_at_start" || name == "none") return work;
  return nullptr;
}

int run(std::string_view name, Scenario scenario) {
  std::unique_ptr<Communicator> comm;
  try {
    if (name == "stopped_at_start" &&
        std::string_view(std::getenv("OMPI_COMM_WORLD_RANK")) == "1") {
      auto environment = std::make_shared<MpiEnvironment>(2s);
      stop();
    }
    comm = connect_ranks(2s);
    scenario(*comm);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    if (comm) comm->abort(error.code());
    return static_cast<int>(error.code());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // if ctest ends mpirun, a stopped rank goes with it
  const std::string_view name = argc > 1 ? argv[1] : "";
  const Scenario scenario = scenario_of(name);
  if (scenario == nullptr) {
    std::fprintf(stderr, "usage: mpi_faults none|stopped|stopped_at_start|stopped_at_end|abort\n");
    return 2;
  }
  return run(name, scenario);
}
