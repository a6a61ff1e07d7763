// Errors of the whole project: what went wrong, where, and what to do about it.
// Every error ends as one clear line and the exit code below (docs/exit-codes.md); none ends as a
// hang.
#pragma once

#include <stdexcept>
#include <string>

namespace flashshard {

/// Exit codes of the `flashshard` binary. A launcher's retry policy keys on them.
enum class ExitCode : int {
  kDone = 0,
  kInternal = 1,       // a bug; never retry
  kUsage = 2,          // bad usage or config, or no usable device; never retry
  kBadData = 3,        // bad input data
  kCheckpoint = 4,     // checkpoint corrupt or incompatible
  kOutOfSpace = 5,     // out of memory or disk
  kCommunication = 6,  // communication failed or timed out, or a device lost; retry
  kNonFinite = 7,      // too many steps with non-finite gradients in a row
  kStopped = 8,        // stopped on request with a checkpoint saved; retry continues
  kNumerics = 9,       // numerics.check REFUSE: the number formats cannot hold what the run does
};

class Error : public std::runtime_error {
 public:
  /// One line is made of the three: "`what` (`where`). Hint: `hint`"; an empty `where` or `hint` is
  /// left out.
  Error(ExitCode code, const std::string& what, const std::string& where = {},
        const std::string& hint = {})
      : std::runtime_error(what + (where.empty() ? "" : " (" + where + ")") +
                           (hint.empty() ? "" : ". Hint: " + hint)),
        code_(code) {}

  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

}  // namespace flashshard
