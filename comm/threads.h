// Ranks as threads of one process: the transport of tests, and of a run with one rank. The verbs
// meet under one mutex; the last rank to arrive at a call moves the bytes of all.
#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"

namespace flashshard {

/// One communicator per rank, sharing one state; each is used by one thread at a time. Calls that
/// do not match between ranks (verb, sizes, root) and missed deadlines end every wait with
/// CommunicationError. Deadline at first: 600 s.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int world_size);

}  // namespace flashshard
