#include "comm/threads.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "comm/call.h"

namespace flashshard {

namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr Seconds kDefaultDeadline{600.0};

/// What one rank brings to a call.
struct Contribution {
  CallSignature signature;
  std::span<const std::byte> send;
  std::vector<ByteRange> send_ranges;  // all_to_all; all_gather: unused
  std::span<std::byte> receive;        // all_gather, broadcast, all_reduce: the buffer itself
  std::vector<ByteRange> receive_ranges;
};

struct Meeting {
  std::vector<std::optional<Contribution>> contributions;  // by rank
  int arrived = 0;
  int left = 0;  // ranks that have seen the completion
  bool complete = false;
};

std::byte* at(std::span<std::byte> buffer, const ByteRange& range) {
  return buffer.data() + range.offset;
}

void copy_bytes(std::byte* to, const std::byte* from, size_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, bytes);
}

std::vector<int64_t> read_values(std::span<const std::byte> bytes) {
  std::vector<int64_t> values(bytes.size() / sizeof(int64_t));
  copy_bytes(reinterpret_cast<std::byte*>(values.data()), bytes.data(), bytes.size());
  return values;
}

using Contributions = std::span<const std::optional<Contribution>>;

void run_all_to_all(Contributions ranks) {
  for (size_t to = 0; to < ranks.size(); ++to) {
    for (size_t from = 0; from < ranks.size(); ++from) {
      const ByteRange& source = ranks[from]->send_ranges[to];
      copy_bytes(at(ranks[to]->receive, ranks[to]->receive_ranges[from]),
                 ranks[from]->send.data() + source.offset, source.size);
    }
  }
}

void run_all_gather(Contributions ranks) {
  for (size_t to = 0; to < ranks.size(); ++to) {
    for (size_t from = 0; from < ranks.size(); ++from) {
      const ByteRange& source = ranks[from]->receive_ranges[from];
      copy_bytes(at(ranks[to]->receive, ranks[to]->receive_ranges[from]),
                 at(ranks[from]->receive, source), source.size);
    }
  }
}

void run_all_reduce(Contributions ranks) {
  std::vector<int64_t> total = read_values(ranks[0]->receive);
  for (size_t r = 1; r < ranks.size(); ++r) {
    combine(total, read_values(ranks[r]->receive).data(), ranks[0]->signature.op);
  }
  for (const auto& rank : ranks) {
    copy_bytes(rank->receive.data(), reinterpret_cast<const std::byte*>(total.data()),
               rank->receive.size());
  }
}

void run_broadcast(Contributions ranks) {
  const auto& root = ranks[static_cast<size_t>(ranks[0]->signature.root)];
  for (const auto& rank : ranks) {
    copy_bytes(rank->receive.data(), root->receive.data(), root->receive.size());
  }
}

void run(Contributions ranks) {
  switch (ranks[0]->signature.verb) {
    case Verb::kAllToAll:
      return run_all_to_all(ranks);
    case Verb::kAllGather:
      return run_all_gather(ranks);
    case Verb::kAllReduce:
      return run_all_reduce(ranks);
    case Verb::kBroadcast:
      return run_broadcast(ranks);
    case Verb::kBarrier:
      return;
  }
}

/// Why the calls of two ranks do not fit together; empty when they do. `numbers`: what ranks are
/// called.
std::string mismatch(std::span<const int> numbers, int a, const Contribution& call_a, int b,
                     const Contribution& call_b) {
  const int name_a = numbers[static_cast<size_t>(a)], name_b = numbers[static_cast<size_t>(b)];
  if (call_a.signature != call_b.signature) {
    return fmt::format("rank {} calls {}, rank {} calls {}", name_a, describe(call_a.signature),
                       name_b, describe(call_b.signature));
  }
  if (call_a.signature.verb == Verb::kAllToAll) {
    const size_t sent = call_a.send_ranges[static_cast<size_t>(b)].size;
    const size_t expected = call_b.receive_ranges[static_cast<size_t>(a)].size;
    if (sent != expected) {
      return fmt::format("all_to_all: rank {} sends {} bytes to rank {}, which expects {}", name_a,
                         sent, name_b, expected);
    }
  }
  if (call_a.signature.verb == Verb::kAllGather) {
    for (size_t p = 0; p < call_a.receive_ranges.size(); ++p) {
      if (call_a.receive_ranges[p].size == call_b.receive_ranges[p].size) continue;
      return fmt::format("all_gather: rank {} expects {} bytes from rank {}, rank {} expects {}",
                         name_a, call_a.receive_ranges[p].size, numbers[p], name_b,
                         call_b.receive_ranges[p].size);
    }
  }
  return {};
}

struct Failure {
  std::string what, hint;
  std::vector<int> late_ranks;
};

/// The meeting place of all ranks, or of those of a split. Everything is guarded by one mutex.
class Hall {
 public:
  /// `numbers`: of the ranks in the whole run, by rank.
  explicit Hall(std::vector<int> numbers)
      : world_size_(static_cast<int>(numbers.size())),
        numbers_(std::move(numbers)),
        next_call_(numbers_.size(), 0) {}

  int world_size() const { return world_size_; }

  /// The meeting place of `members` after a rank's so manieth split: the first that comes opens it.
  std::shared_ptr<Hall> part(uint64_t split, std::span<const int> members) {
    const std::lock_guard lock(mutex_);
    auto& part = parts_[{split, members.front()}];
    if (!part) {
      part = std::make_shared<Hall>(std::vector<int>(members.begin(), members.end()));
      if (failure_) part->end(*failure_);
    }
    return part;
  }

  uint64_t arrive(int rank, Contribution contribution) {
    const std::lock_guard lock(mutex_);
    const uint64_t call = next_call_[static_cast<size_t>(rank)];
    if (failure_) fail(call, describe(contribution.signature));
    ++next_call_[static_cast<size_t>(rank)];
    Meeting& meeting = meetings_[call];
    meeting.contributions.resize(static_cast<size_t>(world_size_));
    if (refuse_mismatch(call, meeting, rank, contribution)) return call;
    meeting.contributions[static_cast<size_t>(rank)] = std::move(contribution);
    if (++meeting.arrived == world_size_) {
      run(meeting.contributions);
      meeting.complete = true;
      changed_.notify_all();
    }
    return call;
  }

  bool test(uint64_t call) {
    const std::lock_guard lock(mutex_);
    const auto meeting = meetings_.find(call);
    if (meeting->second.complete) return leave(meeting);
    if (failure_) fail(call, "test");
    return false;
  }

  void wait(uint64_t call, const std::string& what, std::chrono::duration<double> deadline) {
    const auto until = Clock::now() + std::chrono::duration_cast<Clock::duration>(deadline);
    std::unique_lock lock(mutex_);
    const auto meeting = meetings_.find(call);
    changed_.wait_until(lock, until, [&] { return meeting->second.complete || failure_; });
    if (meeting->second.complete) {
      leave(meeting);
      return;
    }
    if (!failure_) miss_deadline(meeting->second, deadline);
    fail(call, what);
  }

  /// A rank that goes away with a call unfinished takes its buffers with it: nobody may touch them
  /// any more.
  void abandon(int rank, uint64_t call) noexcept {
    const std::lock_guard lock(mutex_);
    const auto meeting = meetings_.find(call);
    if (meeting->second.complete) {
      leave(meeting);
    } else if (!failure_) {
      set_failure(
          {fmt::format("rank {} left a call unfinished", number(rank)), "", {number(rank)}});
    }
  }

  void abort(int rank, ExitCode code) noexcept {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    set_failure(
        {fmt::format("rank {} has aborted with code {}", number(rank), static_cast<int>(code)),
         "the reason stands in that rank's log",
         {number(rank)}});
  }

  /// For a failure in the hall that this one is a part of.
  void end(const Failure& failure) noexcept {
    const std::lock_guard lock(mutex_);
    if (!failure_) set_failure(failure);
  }

 private:
  using Meetings = std::map<uint64_t, Meeting>;

  bool leave(Meetings::iterator meeting) {
    if (++meeting->second.left == world_size_) meetings_.erase(meeting);
    return true;
  }

  int number(int rank) const { return numbers_[static_cast<size_t>(rank)]; }

  void set_failure(Failure failure) {
    failure_ = std::move(failure);
    changed_.notify_all();
    for (const auto& [key, part] : parts_) part->end(*failure_);
  }

  [[noreturn]] void fail(uint64_t call, const std::string& what) const {
    throw CommunicationError(failure_->what, fmt::format("{}, call {}", what, call), failure_->hint,
                             failure_->late_ranks);
  }

  void miss_deadline(const Meeting& meeting, std::chrono::duration<double> deadline) {
    std::vector<int> late;
    CallSignature signature;
    for (int r = 0; r < world_size_; ++r) {
      const auto& contribution = meeting.contributions[static_cast<size_t>(r)];
      if (contribution) {
        signature = contribution->signature;
      } else {
        late.push_back(r);
      }
    }
    set_failure({fmt::format("{} did not arrive at {} within {}", name_ranks(late, {}, numbers_),
                             describe(signature), format_seconds(deadline.count())),
                 "it is stopped, busy or gone; a longer deadline gives it more time",
                 numbers_of(late, numbers_)});
  }

  bool refuse_mismatch(uint64_t call, const Meeting& meeting, int rank,
                       const Contribution& contribution) {
    for (int other = 0; other < world_size_; ++other) {
      const auto& theirs = meeting.contributions[static_cast<size_t>(other)];
      if (!theirs) continue;
      std::string why = mismatch(numbers_, other, *theirs, rank, contribution);
      if (why.empty()) why = mismatch(numbers_, rank, contribution, other, *theirs);
      if (why.empty()) continue;
      set_failure({fmt::format("the ranks' calls do not match at call {}: {}", call, why),
                   "every rank must make the same calls in the same order with matching sizes",
                   {number(other), number(rank)}});
      return true;
    }
    return false;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const int world_size_;
  const std::vector<int> numbers_;   // by rank
  std::vector<uint64_t> next_call_;  // by rank
  Meetings meetings_;
  std::map<std::pair<uint64_t, int>, std::shared_ptr<Hall>> parts_;
  std::optional<Failure> failure_;
};

class ThreadOperation : public Pending::Operation {
 public:
  ThreadOperation(std::shared_ptr<Hall> hall, int rank, uint64_t call,
                  std::chrono::duration<double> deadline)
      : hall_(std::move(hall)), rank_(rank), call_(call), deadline_(deadline) {}
  ~ThreadOperation() override {
    if (!complete_) hall_->abandon(rank_, call_);
  }

  void wait(std::string_view what) override {
    if (complete_) return;
    hall_->wait(call_, std::string(what), deadline_);
    complete_ = true;
  }
  bool test() override {
    if (!complete_) complete_ = hall_->test(call_);
    return complete_;
  }

 private:
  std::shared_ptr<Hall> hall_;
  int rank_;
  uint64_t call_;
  std::chrono::duration<double> deadline_;
  bool complete_ = false;
};

std::string this_host() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

std::vector<ByteRange> to_vector(std::span<const ByteRange> ranges) {
  return {ranges.begin(), ranges.end()};
}

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Hall> hall, int rank, Seconds deadline)
      : hall_(std::move(hall)),
        rank_(rank),
        world_size_(hall_->world_size()),
        host_(this_host()),
        deadline_(deadline) {}

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  std::string_view transport() const override { return "threads"; }
  std::string_view host(int /*rank*/) const override { return host_; }
  void set_deadline(std::chrono::duration<double> deadline) override {
    check_deadline(deadline);
    deadline_ = deadline;
  }

  Pending all_to_all(std::span<const std::byte> send, std::span<const ByteRange> send_ranges,
                     std::span<std::byte> receive,
                     std::span<const ByteRange> receive_ranges) override {
    check_ranges(send_ranges, send.size(), world_size_, "all_to_all, send");
    check_ranges(receive_ranges, receive.size(), world_size_, "all_to_all, receive");
    const auto own = static_cast<size_t>(rank_);
    check_own_slice(send_ranges[own], receive_ranges[own]);
    return start({{.verb = Verb::kAllToAll},
                  send,
                  to_vector(send_ranges),
                  receive,
                  to_vector(receive_ranges)});
  }

  Pending all_gather(std::span<std::byte> buffer, std::span<const ByteRange> ranges) override {
    check_ranges(ranges, buffer.size(), world_size_, "all_gather");
    uint64_t bytes = 0;
    for (const ByteRange& range : ranges) bytes += range.size;
    return start({{.verb = Verb::kAllGather, .bytes = bytes}, {}, {}, buffer, to_vector(ranges)});
  }

  Pending all_reduce(std::span<int64_t> values, ReduceOp op) override {
    return start({{.verb = Verb::kAllReduce, .op = op, .bytes = values.size_bytes()},
                  {},
                  {},
                  std::as_writable_bytes(values),
                  {}});
  }

  Pending broadcast(std::span<std::byte> buffer, int root) override {
    check_root(root, world_size_);
    return start(
        {{.verb = Verb::kBroadcast, .root = root, .bytes = buffer.size()}, {}, {}, buffer, {}});
  }

  Pending barrier() override { return start({{.verb = Verb::kBarrier}, {}, {}, {}, {}}); }

  std::unique_ptr<Communicator> split(int color) override {
    check_split(whole_ != nullptr, color);
    const std::vector<int> members = ranks_of_color(*this, color);
    const auto own = static_cast<int>(std::ranges::find(members, rank_) - members.begin());
    auto part =
        std::make_unique<ThreadCommunicator>(hall_->part(splits_++, members), own, deadline_);
    part->whole_ = hall_;
    part->rank_in_whole_ = rank_;
    return part;
  }

  void abort(ExitCode code) noexcept override {
    if (whole_) {
      whole_->abort(rank_in_whole_, code);
    } else {
      hall_->abort(rank_, code);
    }
  }

 private:
  Pending start(Contribution contribution) {
    const uint64_t call = hall_->arrive(rank_, std::move(contribution));
    return Pending(std::make_unique<ThreadOperation>(hall_, rank_, call, deadline_));
  }

  std::shared_ptr<Hall> hall_;
  int rank_;
  int world_size_;
  std::string host_;
  Seconds deadline_;
  uint64_t splits_ = 0;
  std::shared_ptr<Hall> whole_;  // of all ranks, which an abort ends; null: that is hall_
  int rank_in_whole_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int world_size) {
  if (world_size < 1) {
    throw Error(ExitCode::kUsage, fmt::format("{} ranks asked for", world_size),
                "thread communicators", "a run has at least one rank");
  }
  std::vector<int> numbers(static_cast<size_t>(world_size));
  std::iota(numbers.begin(), numbers.end(), 0);
  const auto hall = std::make_shared<Hall>(std::move(numbers));
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < world_size; ++r) {
    ranks.push_back(std::make_unique<ThreadCommunicator>(hall, r, kDefaultDeadline));
  }
  return ranks;
}

}  // namespace flashshard
