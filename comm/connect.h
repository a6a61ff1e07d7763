// How a process finds the other ranks of its run.
#pragma once

#include <chrono>
#include <memory>

#include "comm/communicator.h"

namespace flashshard {

/// True in a process that an MPI launcher (mpirun, or srun with PMIx or PMI-2) started.
bool launched_by_mpi();

/// The ranks of this run. Started by an MPI launcher: over MPI, initialized here and finalized with
/// the communicator's end. Else: one rank alone, without MPI. `deadline` holds for connecting and
/// for waits until set_deadline. Throws Error(kUsage) when several ranks were launched and this
/// build has no MPI; CommunicationError.
std::unique_ptr<Communicator> connect_ranks(std::chrono::duration<double> deadline);

}  // namespace flashshard
