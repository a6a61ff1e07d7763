// Running a collective command: connect to the other ranks, run, and end together or abort.
#pragma once

#include <chrono>
#include <functional>

#include "comm/communicator.h"
#include "kernels/error.h"

namespace flashshard::launch {

/// Connects the ranks of this run and calls `body` on each. When all ranks know of a failure, rank
/// 0 prints it and all end with its code. When this rank alone failed, it prints "rank R: ..." and
/// aborts the job with its code; it does not return.
ExitCode run_ranks(std::chrono::duration<double> deadline,
                   const std::function<ExitCode(Communicator&)>& body);

}  // namespace flashshard::launch
