// What a power loss may leave of a simulated storage, and whether the promises of checkpoints hold
// on it (docs/checkpoints.md, "How we know").
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/checkpoint/verify.h"
#include "tests/runtime/checkpoint/simulated_storage.h"

namespace flashshard::checkpoint::test {

/// The operations in one order in which they may have happened: ranks are in any order between two
/// exchanges. Seed 0: the highest rank first, so that reports come as early as they can. Nodes that
/// are not on `start` are numbered as they appear: the same log replays in the same way.
std::vector<Operation> in_an_order(const Disk& start, std::span<const Operation> log,
                                   uint64_t seed);

/// How many of the states that a power loss may leave are looked at. The product of all choices
/// when that is no more than `all_of`; otherwise all caches lost, none lost, one host's lost, every
/// single deviation from the first two, and `random` others.
struct Sampling {
  size_t all_of = 128;
  size_t random = 24;
  uint64_t seed = 1;
};
/// Calls `visit` with each; it returns false to end.
void for_each_power_loss(const Disk& disk, const Sampling& sampling,
                         const std::function<bool(const Disk&)>& visit);

/// A hash of every name and byte.
std::string signature(const Disk& disk);

/// A promise that does not hold: 'a' a save reported done is not whole; 'b' a name is complete and
/// its checkpoint not whole; 'c' `latest` names no complete checkpoint.
struct Violation {
  char promise = ' ';
  std::string what;
};

/// Why a start on this storage would be refused, if it would: no crash may leave what
/// find_latest_complete takes for damage.
std::optional<std::string> refused_start(const Disk& disk, const std::string& folder);

/// What was promised up to a point of a log.
class Promises {
 public:
  /// Hash by step of what is saved.
  explicit Promises(std::map<int64_t, Hash128> contents) : contents_(std::move(contents)) {}

  void note(const Operation& operation);
  /// Looks at a storage that came back after a power loss.
  std::optional<Violation> broken_on(const Disk& disk, const std::string& folder);

 private:
  struct Reported {
    int64_t step = 0;
    bool is_being_deleted = false;
  };
  const Verification& verify_once(const Disk& disk, const std::string& path);
  std::optional<Violation> broken_latest(const Disk& disk, const std::string& folder);

  std::map<int64_t, Hash128> contents_;
  std::vector<Reported> reported_;
  std::map<std::string, Verification> known_;  // by a folder's signature
};

}  // namespace flashshard::checkpoint::test
