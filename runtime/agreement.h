// Failing together. An error that every rank knows of ends the run in order: one line, the same
// exit code, a clean finalisation. So work that each rank does alone ends with a vote.
#pragma once

#include <functional>
#include <optional>
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

struct Failure {
  ExitCode code = ExitCode::kInternal;
  std::string text;
};

/// Runs work of this rank alone and catches how it failed. CommunicationError passes through: there
/// is nobody to agree with.
std::optional<Failure> outcome_of(const std::function<void()>& work);

/// Every rank brings its outcome. When one failed, all throw the same AgreedError: the code and
/// text of the lowest failing rank, which is named unless all ranks failed. `prefix`, when not
/// empty, begins the message: "the checkpoint was not saved".
void agree(Communicator& communicator, const std::optional<Failure>& mine,
           std::string_view prefix = {});

/// agree(outcome_of(work)).
void run_and_agree(Communicator& communicator, const std::function<void()>& work);

/// Broadcasts a string from rank 0; every rank returns it. `what` names the wait.
std::string broadcast_text(Communicator& communicator, std::string_view what, std::string text);

/// values[r] of every rank r, gathered into all; each rank's own is in place.
template <class T>
void gather_plain(Communicator& communicator, std::string_view what, std::span<T> values) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<ByteRange> ranges;
  for (size_t r = 0; r < values.size(); ++r) ranges.push_back({r * sizeof(T), sizeof(T)});
  communicator.all_gather(std::as_writable_bytes(values), ranges).wait(what);
}

}  // namespace flashshard
