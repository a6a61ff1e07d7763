#include "tests/comm/verb_checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string>

namespace flashshard {
std::ostream& operator<<(std::ostream& out, Verb verb) { return out << test::name_of(verb); }
}  // namespace flashshard

namespace flashshard::test {

namespace {

/// Bytes that tell who sent them to whom.
std::byte mark(int from, int to, size_t i) {
  return static_cast<std::byte>((static_cast<size_t>(from) * 31 + static_cast<size_t>(to) * 7 + i) %
                                251);
}

/// Uneven on purpose, with empty ones: how many bytes `from` sends to `to`.
size_t uneven(int from, int to) {
  return static_cast<size_t>((from * 5 + to * 3) % 4) * static_cast<size_t>(from + 2 * to + 1) * 13;
}

/// Ranges one after the other with a gap of `gap` bytes; returns the bytes they span.
template <class SizeOf>
size_t lay_out(std::vector<ByteRange>& ranges, int world_size, size_t gap, SizeOf size_of_rank) {
  size_t offset = 0;
  for (int p = 0; p < world_size; ++p) {
    ranges.push_back({offset, size_of_rank(p)});
    offset += ranges.back().size + gap;
  }
  return offset;
}

struct Exchange {
  std::vector<std::byte> send, receive;
  std::vector<ByteRange> send_ranges, receive_ranges;

  explicit Exchange(Communicator& comm) {
    const int rank = comm.rank();
    send.resize(lay_out(send_ranges, comm.world_size(), 0, [&](int p) { return uneven(rank, p); }));
    receive.resize(
        lay_out(receive_ranges, comm.world_size(), 3, [&](int p) { return uneven(p, rank); }),
        kUntouched);
    for (int p = 0; p < comm.world_size(); ++p) {
      const ByteRange& range = send_ranges[static_cast<size_t>(p)];
      for (size_t i = 0; i < range.size; ++i) send[range.offset + i] = mark(rank, p, i);
    }
  }
  Pending start(Communicator& comm) {
    return comm.all_to_all(send, send_ranges, receive, receive_ranges);
  }
  void expect_received(int rank) const {
    std::vector<std::byte> expected(receive.size(), kUntouched);
    for (size_t p = 0; p < receive_ranges.size(); ++p) {
      for (size_t i = 0; i < receive_ranges[p].size; ++i) {
        expected[receive_ranges[p].offset + i] = mark(static_cast<int>(p), rank, i);
      }
    }
    EXPECT_EQ(receive, expected);
  }
  static constexpr std::byte kUntouched{255};
};

void all_to_all_moves_uneven_and_empty_ranges(Communicator& comm) {
  Exchange exchange(comm);
  exchange.start(comm).wait("the exchange");
  exchange.expect_received(comm.rank());
}

void all_to_all_of_nothing_completes(Communicator& comm) {
  const std::vector<ByteRange> none(static_cast<size_t>(comm.world_size()));
  comm.all_to_all({}, none, {}, none).wait("nothing");
}

void all_gather_fills_every_range(Communicator& comm) {
  for (size_t base : {size_t{0}, size_t{1}, size_t{1000}}) {
    std::vector<ByteRange> ranges;
    const size_t bytes = lay_out(ranges, comm.world_size(), 5, [&](int p) {
      return p % 3 == 2 ? 0 : base * static_cast<size_t>(p + 1);
    });
    std::vector<std::byte> buffer(bytes, Exchange::kUntouched), expected(buffer);
    for (size_t p = 0; p < ranges.size(); ++p) {
      for (size_t i = 0; i < ranges[p].size; ++i) {
        expected[ranges[p].offset + i] = mark(static_cast<int>(p), 0, i);
        if (static_cast<int>(p) == comm.rank()) {
          buffer[ranges[p].offset + i] = mark(comm.rank(), 0, i);
        }
      }
    }
    comm.all_gather(buffer, ranges).wait("the gather");
    EXPECT_EQ(buffer, expected) << "base " << base;
  }
}

void all_reduce_sums_maximises_and_minimises(Communicator& comm) {
  const int64_t n = comm.world_size();
  const int64_t r = comm.rank();
  constexpr int64_t kHuge = int64_t{1} << 40;
  const std::vector<int64_t> values = {r, -r * kHuge, kHuge + r};
  std::vector<int64_t> sum = values, largest = values, smallest = values, nothing;
  comm.all_reduce(sum, ReduceOp::kSum).wait("the sum");
  comm.all_reduce(largest, ReduceOp::kMax).wait("the maximum");
  comm.all_reduce(smallest, ReduceOp::kMin).wait("the minimum");
  comm.all_reduce(nothing, ReduceOp::kSum).wait("nothing");
  const int64_t triangle = n * (n - 1) / 2;
  EXPECT_THAT(sum, testing::ElementsAre(triangle, -triangle * kHuge, n * kHuge + triangle));
  EXPECT_THAT(largest, testing::ElementsAre(n - 1, 0, kHuge + n - 1));
  EXPECT_THAT(smallest, testing::ElementsAre(0, -(n - 1) * kHuge, kHuge));
}

void all_reduce_sum_wraps_around(Communicator& comm) {
  std::vector<int64_t> value = {comm.rank() == 0 ? std::numeric_limits<int64_t>::max() : 1};
  comm.all_reduce(value, ReduceOp::kSum).wait("the sum");
  const auto expected = static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) +
                        static_cast<uint64_t>(comm.world_size() - 1);
  EXPECT_EQ(value[0], static_cast<int64_t>(expected));
}

void broadcast_reaches_all_from_every_root(Communicator& comm) {
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{3000}}) {
    for (int root = 0; root < comm.world_size(); ++root) {
      std::vector<std::byte> buffer(bytes), expected(bytes);
      for (size_t i = 0; i < bytes; ++i) expected[i] = mark(root, 1, i);
      if (comm.rank() == root) buffer = expected;
      comm.broadcast(buffer, root).wait("the broadcast");
      EXPECT_EQ(buffer, expected) << "root " << root;
    }
  }
}

void barrier_completes_again_and_again(Communicator& comm) {
  for (int i = 0; i < 20; ++i) comm.barrier().wait("the barrier");
}

void calls_in_flight_finish_in_any_order(Communicator& comm) {
  Exchange first(comm), second(comm);
  std::vector<int64_t> ones = {1};
  Pending a = first.start(comm);
  Pending sum = comm.all_reduce(ones, ReduceOp::kSum);
  Pending b = second.start(comm);
  Pending barrier = comm.barrier();
  barrier.wait("the barrier");
  // Half of the ranks go one way, half the other.
  if (comm.rank() % 2 == 0) {
    b.wait("the second exchange");
    a.wait("the first exchange");
  } else {
    a.wait("the first exchange");
    b.wait("the second exchange");
  }
  sum.wait("the sum");
  first.expect_received(comm.rank());
  second.expect_received(comm.rank());
  EXPECT_EQ(ones[0], comm.world_size());
}

void test_makes_progress_until_complete(Communicator& comm) {
  Exchange exchange(comm);
  Pending pending = exchange.start(comm);
  while (!pending.test()) {
  }
  EXPECT_TRUE(pending.test());
  pending.wait("what is complete");
  exchange.expect_received(comm.rank());
}

void every_rank_knows_every_host(Communicator& comm) {
  for (int p = 0; p < comm.world_size(); ++p) EXPECT_FALSE(comm.host(p).empty());
}

void parts_of_a_split_are_communicators_of_their_own(Communicator& comm) {
  const int rank = comm.rank(), n = comm.world_size();
  // All together, pairs, odd and even, each alone: (color of a rank, its rank in the part, ranks).
  const auto pair = rank / 2;
  const std::vector<std::array<int, 3>> expected = {{0, rank, n},
                                                    {pair, rank % 2, std::min(n - 2 * pair, 2)},
                                                    {rank % 2, rank / 2, (n + 1 - rank % 2) / 2},
                                                    {rank, 0, 1}};
  for (const auto& [color, own, members] : expected) {
    const auto part = comm.split(color);
    EXPECT_EQ(part->rank(), own);
    EXPECT_EQ(part->world_size(), members);
    EXPECT_EQ(part->host(own), comm.host(rank));
    EXPECT_EQ(part->transport(), comm.transport());
    Exchange of_all(comm), of_part(*part);
    Pending all = of_all.start(comm);
    Pending in_part = of_part.start(*part);
    // A part has no more calls than it makes itself.
    for (int i = 0; i <= color; ++i) all_gather_fills_every_range(*part);
    all_reduce_sums_maximises_and_minimises(*part);
    broadcast_reaches_all_from_every_root(*part);
    barrier_completes_again_and_again(*part);
    all.wait("the exchange of all");
    in_part.wait("the exchange of a part");
    of_all.expect_received(rank);
    of_part.expect_received(own);
    EXPECT_THROW((void)part->split(0), Error);
  }
  EXPECT_THROW((void)comm.split(-1), Error);
}

void arguments_that_cannot_be_right_are_refused(Communicator& comm) {
  std::vector<std::byte> buffer(8);
  const std::vector<ByteRange> too_many(static_cast<size_t>(comm.world_size()) + 1);
  std::vector<ByteRange> outside(static_cast<size_t>(comm.world_size()));
  outside.back() = {4, 5};
  const std::vector<ByteRange> inside(outside.size());
  std::vector<ByteRange> own(inside);
  own[static_cast<size_t>(comm.rank())] = {0, 1};
  EXPECT_THROW((void)comm.all_gather(buffer, too_many), Error);
  EXPECT_THROW((void)comm.all_gather(buffer, outside), Error);
  EXPECT_THROW((void)comm.all_to_all(buffer, outside, buffer, inside), Error);
  EXPECT_THROW((void)comm.all_to_all(buffer, inside, buffer, outside), Error);
  EXPECT_THROW((void)comm.all_to_all(buffer, own, buffer, inside), Error);
  EXPECT_THROW((void)comm.broadcast(buffer, comm.world_size()), Error);
  EXPECT_THROW((void)comm.broadcast(buffer, -1), Error);
  EXPECT_THROW(comm.set_deadline(std::chrono::seconds(0)), Error);
  EXPECT_THROW(
      comm.set_deadline(std::chrono::duration<double>(std::numeric_limits<double>::quiet_NaN())),
      Error);
  comm.barrier().wait("the barrier: a refused call is not a call");
}

constexpr VerbCheck kVerbChecks[] = {
    {"AllToAllMovesUnevenAndEmptyRanges", all_to_all_moves_uneven_and_empty_ranges},
    {"AllToAllOfNothingCompletes", all_to_all_of_nothing_completes},
    {"AllGatherFillsEveryRange", all_gather_fills_every_range},
    {"AllReduceSumsMaximisesAndMinimises", all_reduce_sums_maximises_and_minimises},
    {"AllReduceSumWrapsAround", all_reduce_sum_wraps_around},
    {"BroadcastReachesAllFromEveryRoot", broadcast_reaches_all_from_every_root},
    {"BarrierCompletesAgainAndAgain", barrier_completes_again_and_again},
    {"CallsInFlightFinishInAnyOrder", calls_in_flight_finish_in_any_order},
    {"TestMakesProgressUntilComplete", test_makes_progress_until_complete},
    {"EveryRankKnowsEveryHost", every_rank_knows_every_host},
    {"PartsOfASplitAreCommunicatorsOfTheirOwn", parts_of_a_split_are_communicators_of_their_own},
    {"ArgumentsThatCannotBeRightAreRefused", arguments_that_cannot_be_right_are_refused},
};

}  // namespace

std::ostream& operator<<(std::ostream& out, const VerbCheck& check) { return out << check.name; }

std::span<const VerbCheck> verb_checks() { return kVerbChecks; }

std::vector<VerbCheck> all_checks() {
  std::vector<VerbCheck> checks(verb_checks().begin(), verb_checks().end());
  checks.insert(checks.end(), fold_checks().begin(), fold_checks().end());
  return checks;
}

AnyCall::AnyCall(Communicator& communicator, Verb verb, int root)
    : communicator_(communicator), verb_(verb), root_(root), values_(10) {
  const auto n = static_cast<size_t>(communicator.world_size());
  for (size_t p = 0; p < n; ++p) ranges_.push_back({p * 8, 8});
  send_.resize(n * 8);
  receive_.resize(n * 8);
}

Pending AnyCall::start() {
  switch (verb_) {
    case Verb::kAllToAll:
      return communicator_.all_to_all(send_, ranges_, receive_, ranges_);
    case Verb::kAllGather:
      return communicator_.all_gather(receive_, ranges_);
    case Verb::kAllReduce:
      return communicator_.all_reduce(values_, ReduceOp::kSum);
    case Verb::kBroadcast:
      return communicator_.broadcast(receive_, root_);
    case Verb::kBarrier:
      return communicator_.barrier();
  }
  return Pending();
}

std::string_view name_of(Verb verb) {
  switch (verb) {
    case Verb::kAllToAll:
      return "AllToAll";
    case Verb::kAllGather:
      return "AllGather";
    case Verb::kAllReduce:
      return "AllReduce";
    case Verb::kBroadcast:
      return "Broadcast";
    case Verb::kBarrier:
      return "Barrier";
  }
  return "";
}

Caught wait_and_catch(Pending pending, std::string_view what) {
  try {
    pending.wait(what);
  } catch (const CommunicationError& error) {
    EXPECT_EQ(error.code(), ExitCode::kCommunication);
    return {true, error.what(), error.late_ranks()};
  }
  return {};
}

}  // namespace flashshard::test
