// Failing together. An error that every rank knows of ends the run in order: one line, the same
// exit code, a clean finalisation. An error on one rank alone is told to the others first, where
// they are at an agreed point.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "comm/communicator.h"
#include "kernels/error.h"

namespace flashshard {

/// An error that all ranks have thrown with the same text and code. Rank 0 prints it.
class AgreedError : public Error {
 public:
  AgreedError(ExitCode code, const std::string& message) : Error(code, message) {}
};

/// Runs `action` on every rank, then all ranks learn whether it failed anywhere: if so, every rank
/// throws AgreedError with the lowest failing rank's message (prefixed "rank R: " when not every
/// rank failed in the same words). CommunicationError passes through.
void run_and_agree(Communicator& communicator, std::string_view what,
                   const std::function<void()>& action);

/// Broadcasts a string from `root`; every rank returns it.
std::string broadcast_text(Communicator& communicator, std::string_view what, std::string text,
                           int root = 0);

/// values[r] of every rank r, gathered into all; each rank's own is in place.
template <class T>
void gather_plain(Communicator& communicator, std::string_view what, std::span<T> values) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<ByteRange> ranges;
  for (size_t r = 0; r < values.size(); ++r) ranges.push_back({r * sizeof(T), sizeof(T)});
  communicator.all_gather(std::as_writable_bytes(values), ranges).wait(what);
}

}  // namespace flashshard
