#include "comm/roll_call.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace flashshard {

namespace {

constexpr std::string_view kLateHint =
    "it is stopped, busy or gone: see its log and status file; run.deadline_seconds gives it more "
    "time";

/// Ranks other than the own one whose answer satisfies `predicate`.
template <class Predicate>
std::vector<int> select(const RollCall& roll_call, Predicate predicate) {
  std::vector<int> ranks;
  for (size_t p = 0; p < roll_call.answers.size(); ++p) {
    if (static_cast<int>(p) == roll_call.rank) continue;
    if (predicate(roll_call.answers[p])) ranks.push_back(static_cast<int>(p));
  }
  return ranks;
}

std::string named(const RollCall& roll_call, std::span<const int> ranks) {
  return name_ranks(ranks, roll_call.hosts, roll_call.numbers);
}

const Attendance& answer_of(const RollCall& roll_call, int rank) {
  return *roll_call.answers[static_cast<size_t>(rank)];
}

double longest_wait(const RollCall& roll_call) {
  double longest = roll_call.own.waited_seconds;
  for (int p : select(roll_call, [](const auto& a) { return a.has_value(); })) {
    longest = std::max(longest, answer_of(roll_call, p).waited_seconds);
  }
  return longest;
}

std::string position(const Attendance& attendance) {
  return fmt::format("{} (call {}, {})", describe(attendance.signature), attendance.call,
                     attendance.reason_text());
}

Diagnosis absent_ranks(const RollCall& roll_call, const std::vector<int>& absent) {
  // A rank whose bytes have come was in this call: it is absent because it went on. Where an absent
  // one owes bytes, that one is to blame; where none does, the ranks awaited are themselves waiting
  // for an absent one.
  std::vector<int> late;
  std::ranges::set_intersection(absent, roll_call.awaited, std::back_inserter(late));
  if (late.empty()) late = absent;
  return {fmt::format("{} did not arrive at {} within {}", named(roll_call, late),
                      describe(roll_call.own.signature), format_seconds(longest_wait(roll_call))),
          std::string(kLateHint), late};
}

Diagnosis failed_ranks(const RollCall& roll_call, const std::vector<int>& failed) {
  const Attendance& first = answer_of(roll_call, failed.front());
  return {fmt::format("{} reports: {}", named(roll_call, std::span(failed).first(1)),
                      first.reason_text()),
          {},
          failed};
}

Diagnosis different_calls(const RollCall& roll_call, const std::vector<int>& different) {
  const Attendance& first = answer_of(roll_call, different.front());
  return {fmt::format("the ranks' calls do not match: {} waits in {}, {} in {}",
                      name_ranks(std::span(&roll_call.rank, 1), {}, roll_call.numbers),
                      position(roll_call.own), named(roll_call, std::span(different).first(1)),
                      position(first)),
          "every rank must make the same calls in the same order with matching sizes", different};
}

/// All ranks wait in the same call. Who came in the second half of the longest wait is late; if
/// nobody did, the bytes are slow.
Diagnosis late_or_slow(const RollCall& roll_call) {
  const double longest = longest_wait(roll_call);
  const auto came_late = [&](const Attendance& a) { return a.waited_seconds < longest / 2; };
  std::vector<int> late = select(roll_call, [&](const auto& a) { return came_late(*a); });
  if (came_late(roll_call.own)) {
    late.insert(std::ranges::lower_bound(late, roll_call.rank), roll_call.rank);
  }
  if (!late.empty()) {
    return {fmt::format("{} arrived late at {}, after others had waited {}", named(roll_call, late),
                        describe(roll_call.own.signature), format_seconds(longest)),
            std::string(kLateHint), late};
  }
  std::vector<int> awaited(roll_call.awaited.begin(), roll_call.awaited.end());
  return {
      fmt::format("bytes of {} did not come within {}, though every rank waits in {}",
                  awaited.empty() ? "no rank" : named(roll_call, awaited),
                  format_seconds(longest_wait(roll_call)), describe(roll_call.own.signature)),
      "the network lost or delays messages, or run.deadline_seconds is shorter than the transfer",
      awaited};
}

Diagnosis judge(const RollCall& roll_call) {
  const auto absent = select(roll_call, [](const auto& a) { return !a.has_value(); });
  const auto failed = select(roll_call, [](const auto& a) { return a && a->failed != 0; });
  const auto different = select(roll_call, [&](const auto& a) {
    return a && (a->call != roll_call.own.call || a->signature != roll_call.own.signature);
  });
  // An error elsewhere explains both silence and different calls.
  if (!failed.empty()) return failed_ranks(roll_call, failed);
  if (!absent.empty()) return absent_ranks(roll_call, absent);
  if (!different.empty()) return different_calls(roll_call, different);
  return late_or_slow(roll_call);
}

}  // namespace

void Attendance::set_reason(std::string_view text) {
  reason.fill('\0');
  std::memcpy(reason.data(), text.data(), std::min(text.size(), reason.size() - 1));
}

std::string_view Attendance::reason_text() const {
  return {reason.data(), static_cast<size_t>(std::ranges::find(reason, '\0') - reason.begin())};
}

Diagnosis diagnose(const RollCall& roll_call) {
  Diagnosis diagnosis = judge(roll_call);
  diagnosis.late_ranks = numbers_of(diagnosis.late_ranks, roll_call.numbers);
  return diagnosis;
}

}  // namespace flashshard
