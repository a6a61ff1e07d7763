// A communicator over a slower link, for tests and benchmarks: what communication costs, and how
// much of it is hidden, can be measured on one machine.
//
// A rank's link carries its transfers one after the other, both directions at once. A call that
// starts at t, of b bytes (the larger of what this rank sends and what it receives; a broadcast
// counts its buffer once), begins on the
// link when the transfers before it have left it and is complete no earlier than
//
//   max(t, link free) + b / bandwidth + latency,
//
// and not before the communicator under it says so. Waiting sleeps for the rest; what a rank
// computes meanwhile is free. A rank alone sends nothing and waits for nothing.
#pragma once

#include <chrono>
#include <limits>
#include <memory>

#include "comm/communicator.h"

namespace flashshard {

struct LinkOptions {
  std::chrono::duration<double> latency{0};                           // 0 or more
  double bytes_per_second = std::numeric_limits<double>::infinity();  // above 0
};

/// Results, errors and deadlines are those of `communicator`; the added delay counts against no
/// deadline. Throws Error(kInternal) for a link that is none.
std::unique_ptr<Communicator> make_delayed_communicator(std::unique_ptr<Communicator> communicator,
                                                        const LinkOptions& link);

}  // namespace flashshard
