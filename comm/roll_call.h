// Who is late? When a deadline passes, every waiting rank tells the others where it stands and
// hears the same from them for a grace time; a rank that does not answer is stopped, busy or gone.
// This file judges the answers; a transport carries them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "comm/call.h"

namespace flashshard {

/// What a rank says about itself. Trivially copyable: sent as bytes.
struct Attendance {
  uint64_t call = 0;  // number of the call that it waits in
  CallSignature signature;
  double waited_seconds = 0;
  int32_t failed = 0;              // 1: it does not wait, it has met an error: `reason`
  std::array<char, 256> reason{};  // what it waits for, or the error; zero-terminated

  void set_reason(std::string_view text);
  std::string_view reason_text() const;
};
static_assert(std::is_trivially_copyable_v<Attendance>);

struct RollCall {
  int rank = 0;
  Attendance own;
  std::span<const std::optional<Attendance>> answers;  // by rank; the own entry is not read
  std::span<const int> awaited;                        // ranks whose bytes are missing here
  std::span<const std::string> hosts;                  // by rank
  std::span<const int> numbers = {};  // of the ranks in the whole run, which they are called by
};

struct Diagnosis {
  std::string what, hint;
  std::vector<int> late_ranks;
};

/// Names the ranks that hold the others up: those that met an error; else those that did not
/// answer; else those that wait in a different call; else those that arrived late; else those whose
/// bytes are missing. late_ranks are numbers in the whole run.
Diagnosis diagnose(const RollCall& roll_call);

}  // namespace flashshard
