// How many threads a rank computes with, and on which of its host's processors: ranks that the
// launcher left on the same ones share their cores out, memory node by memory node; a rank that it
// bound to processors of its own keeps them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/cpu/cpu_topology.h"
#include "proto/run.pb.h"

namespace flashshard {

/// What a rank may use, and with how many others.
struct ProcessorShare {
  std::vector<cpu::Core> cores;  // of the processors that launcher and kernel allow
  std::optional<double>
      quota;              // processors' worth of time that the ranks of the host have together
  int ranks = 1;          // of this host that may run on the same processors
  int index = 0;          // this rank's place among them
  int ranks_of_host = 1;  // whatever they may run on

  cpu::ProcessorList processors() const;
};

/// Collective: ranks of a host compare what they may run on.
ProcessorShare share_processors(Communicator& communicator);

struct ThreadPlacement {
  int threads = 1;
  cpu::ProcessorList processors;  // what they run on
  bool bound = false;             // to a part of what the ranks share
  std::string text;               // "2 threads on CPUs 0-1", for people
};

/// `run.threads`, or else an equal share of the cores (not of their hardware threads, unless ranks
/// are more than cores) or of the quota, whichever is less; at least 1. With `run.bind_cores` AUTO
/// a rank is bound to its part where the processors suffice for all and the ranks together use all
/// cores: a run that leaves some free, or may use less time than they have, leaves the choice to
/// the kernel.
ThreadPlacement place_threads(const proto::RunConfig& config, const ProcessorShare& share);

/// place_threads(), and binds the calling thread where it says so. Threads started later inherit
/// it.
ThreadPlacement settle_threads(const proto::RunConfig& config, const ProcessorShare& share);

}  // namespace flashshard
