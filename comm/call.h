// One call of a verb: its signature for error messages, and the checks of its arguments that all
// transports share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"

namespace flashshard {

enum class Verb : uint8_t { kAllToAll, kAllGather, kAllReduce, kBroadcast, kBarrier };

/// What every rank must agree on in a call. Trivially copyable: it travels between ranks.
struct CallSignature {
  Verb verb = Verb::kBarrier;
  ReduceOp op = ReduceOp::kSum;  // all_reduce
  int32_t root = 0;              // broadcast
  uint64_t bytes =
      0;  // all_gather: of all ranks; all_reduce, broadcast; 0 for all_to_all, where ranks differ
  bool operator==(const CallSignature&) const = default;
};

/// A distinct small number for each verb and reduction: the part of a message tag that keeps
/// different calls apart.
constexpr int kSignatureCodes = 7;
int code_of(const CallSignature& signature);
/// Name of a code without sizes: "all_reduce(sum)".
std::string_view name_of_code(int code);

/// "all_reduce(sum, 10 values)", "broadcast(64 bytes from rank 0)", "barrier".
std::string describe(const CallSignature& signature);

/// "rank 1 (node7), rank 3 (node9)", at most eight of them. `hosts` by rank; an empty name is left
/// out. `numbers`: what ranks are called, by rank; empty: as they are.
std::string name_ranks(std::span<const int> ranks, std::span<const std::string> hosts,
                       std::span<const int> numbers = {});

/// The ranks' numbers in the whole run, by rank; empty `numbers`: the ranks themselves.
std::vector<int> numbers_of(std::span<const int> ranks, std::span<const int> numbers);

/// The ranks of `communicator` that give the same color as this one, ascending: the first half of
/// Communicator::split. Collective.
std::vector<int> ranks_of_color(Communicator& communicator, int color);

/// "2.5 s".
std::string format_seconds(double seconds);

/// Argument checks: one range per rank, all inside the buffer. Throw Error(kInternal): a wrong call
/// is a bug of the caller.
void check_ranges(std::span<const ByteRange> ranges, size_t buffer_bytes, int world_size,
                  std::string_view where);
void check_own_slice(const ByteRange& send, const ByteRange& receive);
void check_root(int root, int world_size);
/// `is_part`: of a communicator that a split has made.
void check_split(bool is_part, int color);
void check_deadline(std::chrono::duration<double> deadline);

/// values[i] = op(values[i], other[i]); sums wrap around.
void combine(std::span<int64_t> values, const int64_t* other, ReduceOp op);

}  // namespace flashshard
