// What a fuzz target is: the function that libFuzzer calls, and what it may end in. An
// flashshard::Error of a code for bad input is the reader's answer; anything else (another
// exception, a signal, an allocation beyond the driver's limit) is a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "kernels/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace flashshard::fuzz {

/// Ends the process when something that must hold does not.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "finding: %s\n", what);
  std::abort();
}

/// Runs a reader; returns true when it took the input. An Error must have `code` and be one line
/// of bounded length.
template <class Reader>
bool accepts(ExitCode code, Reader reader) {
  try {
    reader();
    return true;
  } catch (const Error& error) {
    const std::string what = error.what();
    require(error.code() == code, "an Error of another code than bad input's");
    require(!what.empty() && what.size() < 10000, "an error message of no bounded length");
    require(what.find('\n') == std::string::npos, "an error message of several lines");
    return false;
  }
}

}  // namespace flashshard::fuzz
