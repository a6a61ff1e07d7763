// What every transport must do, written once: each check is called by all ranks of a communicator,
// whatever carries the bytes.
#pragma once

#include <cstdint>
#include <ostream>
#include <span>
#include <string_view>
#include <vector>

#include "comm/call.h"
#include "comm/communicator.h"

namespace flashshard {
std::ostream& operator<<(std::ostream& out, Verb verb);  // in the names of tests
}  // namespace flashshard

namespace flashshard::test {

/// `run` is called by every rank, collectively; expectations are GoogleTest's.
struct VerbCheck {
  std::string_view name;
  void (*run)(Communicator&);
};
std::ostream& operator<<(std::ostream& out, const VerbCheck& check);

std::span<const VerbCheck> verb_checks();  // comm/communicator.h
std::span<const VerbCheck> fold_checks();  // comm/fold_reduce.h
std::vector<VerbCheck> all_checks();

/// Buffers of one call of any verb, for tests that care about who is there and not about the bytes.
class AnyCall {
 public:
  /// A broadcast comes from `root`.
  AnyCall(Communicator& communicator, Verb verb, int root);
  Pending start();

 private:
  Communicator& communicator_;
  Verb verb_;
  int root_;
  std::vector<std::byte> send_, receive_;
  std::vector<ByteRange> ranges_;
  std::vector<int64_t> values_;
};
constexpr Verb kAllVerbs[] = {Verb::kAllToAll, Verb::kAllGather, Verb::kAllReduce, Verb::kBroadcast,
                              Verb::kBarrier};
std::string_view name_of(Verb verb);

/// What `wait` throws; fails the test when it throws nothing else than a CommunicationError, or
/// nothing at all.
struct Caught {
  bool thrown = false;
  std::string text;
  std::vector<int> late_ranks;
};
Caught wait_and_catch(Pending pending, std::string_view what);

}  // namespace flashshard::test
