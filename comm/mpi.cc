#include "comm/mpi.h"

#include <fmt/format.h>
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/backoff.h"
#include "comm/call.h"
#include "comm/exit_timer.h"
#include "comm/mpi_messages.h"
#include "comm/roll_call.h"

namespace flashshard {

namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr int kCodes = 8;                   // a power of two that holds kSignatureCodes
constexpr int kLargestTagWindow = 1 << 16;  // calls whose tags are distinct
constexpr Seconds kAbortLimit{5.0};
constexpr int kSleepsBetweenListening = 16;
static_assert(kSignatureCodes <= kCodes);

double seconds_since(Clock::time_point start) { return Seconds(Clock::now() - start).count(); }

/// What a call is to error messages and to the roll call.
struct CallInFlight {
  uint64_t number = 0;
  CallSignature signature;
  Seconds deadline{0};
};

class MpiCommunicator;

class MpiOperation : public Pending::Operation {
 public:
  MpiOperation(MpiCommunicator& owner, const CallInFlight& call, const MpiMessages::Route& route)
      : owner_(owner), call_(call), messages_(route) {}
  ~MpiOperation() override;

  void wait(std::string_view what) override;
  bool test() override;

  const CallInFlight& call() const { return call_; }
  MpiMessages& messages() { return messages_; }
  const MpiMessages& messages() const { return messages_; }
  /// What to do when all messages have arrived; it may start new ones.
  void then(std::function<void()> action) { action_ = std::move(action); }

 private:
  bool advance(std::string_view what);

  MpiCommunicator& owner_;
  CallInFlight call_;
  std::function<void()> action_;
  MpiMessages messages_;
  bool complete_ = false;
};

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(std::shared_ptr<MpiEnvironment> environment, const MpiOptions& options);
  /// `members` of `whole`, on `comm`, a duplicate of its MPI communicator.
  MpiCommunicator(MpiCommunicator& whole, std::span<const int> members, MPI_Comm comm);
  ~MpiCommunicator() override;

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  std::string_view transport() const override { return "mpi"; }
  std::string_view host(int rank) const override { return hosts_.at(static_cast<size_t>(rank)); }
  void set_deadline(Seconds deadline) override;

  Pending all_to_all(std::span<const std::byte> send, std::span<const ByteRange> send_ranges,
                     std::span<std::byte> receive,
                     std::span<const ByteRange> receive_ranges) override;
  Pending all_gather(std::span<std::byte> buffer, std::span<const ByteRange> ranges) override;
  Pending all_reduce(std::span<int64_t> values, ReduceOp op) override;
  Pending broadcast(std::span<std::byte> buffer, int root) override;
  Pending barrier() override;
  std::unique_ptr<Communicator> split(int color) override;
  void abort(ExitCode code) noexcept override;

  void throw_if_failed(std::string_view what, const CallInFlight& call) const;
  /// Throws when another rank calls the roll, or is in another verb at this call's number.
  void listen(const MpiOperation& operation, std::string_view what, double waited_seconds);
  /// A deadline has passed here or elsewhere: finds out who is late. `awaited`: by rank here.
  [[noreturn]] void call_roll(const CallInFlight& call, std::span<const int> awaited,
                              std::string_view what, double waited_seconds);
  /// An error was met here: tells the others, so that they need not wait for their deadlines.
  [[noreturn]] void fail(const CallInFlight& call, std::string_view what, const std::string& error,
                         const std::string& hint, std::vector<int> late_ranks);
  /// A call was given up unfinished: this rank no longer keeps step with the others.
  void abandon() noexcept;

 private:
  struct Failure {
    std::string what, hint;
    std::vector<int> late_ranks;
  };

  std::unique_ptr<MpiOperation> start(const CallSignature& signature);
  void exchange_hosts();
  /// Of `comm_`: all its ranks call it.
  MPI_Comm duplicate();
  bool roll_is_called() const;
  /// Own attendance to all others and theirs to here, until all is done or the grace time has
  /// passed.
  std::vector<std::optional<Attendance>> exchange_attendance(const Attendance& own);
  [[noreturn]] void throw_failure(std::string_view what, const CallInFlight& call) const;

  int tag_of(uint64_t call, int code) const {
    return static_cast<int>(call % static_cast<uint64_t>(tag_window_)) * kCodes + code;
  }
  int number() const { return numbers_[static_cast<size_t>(rank_)]; }
  int roll_call_tag() const { return tag_window_ * kCodes; }
  /// The i-th other rank, i = 1 .. N-1: each rank begins with its neighbour, so that no rank is
  /// everybody's first.
  int other(int i) const { return (rank_ + i) % world_size_; }

  std::shared_ptr<MpiEnvironment> environment_;
  MpiOptions options_;
  Seconds deadline_;
  MPI_Comm comm_ = MPI_COMM_WORLD;  // until the duplicate stands
  int rank_ = 0;
  int world_size_ = 1;
  int tag_window_ = kLargestTagWindow;
  uint64_t next_call_ = 0;
  std::vector<int> numbers_;          // by rank: in MPI_COMM_WORLD and its duplicates
  MpiCommunicator* whole_ = nullptr;  // of which this is a part, after a split
  std::vector<std::string> hosts_;    // by rank
  std::optional<Failure> failure_;
};

// ----------------------------------------------------------------------------------------------
// operation

MpiOperation::~MpiOperation() {
  if (!complete_) owner_.abandon();
}

bool MpiOperation::advance(std::string_view what) {
  owner_.throw_if_failed(what, call_);
  try {
    while (!complete_ && messages_.advance()) {
      if (action_) {
        std::exchange(action_, nullptr)();
      } else {
        complete_ = true;
      }
    }
  } catch (const CommunicationError& error) {
    owner_.fail(call_, what, error.what(), "", error.late_ranks());
  }
  return complete_;
}

bool MpiOperation::test() { return complete_ || advance("test"); }

void MpiOperation::wait(std::string_view what) {
  const Clock::time_point start = Clock::now();
  Backoff backoff;
  int sleeps = 0;
  while (!complete_) {
    const size_t before = messages_.in_flight();
    if (advance(what)) return;
    if (messages_.in_flight() != before) backoff.reset();
    const double waited = seconds_since(start);
    if (waited > call_.deadline.count()) {
      owner_.call_roll(call_, messages_.awaited(), what, waited);
    }
    if (backoff.pause() && ++sleeps % kSleepsBetweenListening == 0) {
      owner_.listen(*this, what, waited);
    }
  }
}

// ----------------------------------------------------------------------------------------------
// communicator

MpiCommunicator::MpiCommunicator(std::shared_ptr<MpiEnvironment> environment,
                                 const MpiOptions& options)
    : environment_(std::move(environment)), options_(options), deadline_(options.deadline) {
  check_deadline(options.deadline);
  if (options.message_limit < 1 || options.message_limit > INT_MAX) {
    throw Error(ExitCode::kInternal,
                fmt::format("a message limit of {} bytes is not usable", options.message_limit),
                "MPI communicator");
  }
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &world_size_), "MPI_Comm_size");
  int* largest_tag = nullptr;
  int found = 0;
  check_mpi(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &largest_tag, &found),
            "MPI_Comm_get_attr");
  if (found != 0) tag_window_ = std::min(tag_window_, *largest_tag / kCodes - 1);
  numbers_.resize(static_cast<size_t>(world_size_));
  std::iota(numbers_.begin(), numbers_.end(), 0);
  hosts_.resize(static_cast<size_t>(world_size_));
  exchange_hosts();
  comm_ = duplicate();
}

MpiCommunicator::MpiCommunicator(MpiCommunicator& whole, std::span<const int> members,
                                 MPI_Comm comm)
    : environment_(whole.environment_),
      options_(whole.options_),
      deadline_(whole.deadline_),
      comm_(comm),
      rank_(static_cast<int>(std::ranges::find(members, whole.rank_) - members.begin())),
      world_size_(static_cast<int>(members.size())),
      tag_window_(whole.tag_window_),
      numbers_(members.begin(), members.end()),
      whole_(&whole) {
  for (const int member : members) hosts_.push_back(whole.hosts_[static_cast<size_t>(member)]);
}

MpiCommunicator::~MpiCommunicator() {
  if (comm_ == MPI_COMM_WORLD || failure_ || std::uncaught_exceptions() > 0) return;
  MPI_Comm_free(&comm_);
}

void MpiCommunicator::set_deadline(Seconds deadline) {
  check_deadline(deadline);
  deadline_ = deadline;
}

std::unique_ptr<MpiOperation> MpiCommunicator::start(const CallSignature& signature) {
  const CallInFlight call{next_call_, signature, deadline_};
  throw_if_failed("start", call);
  ++next_call_;
  return std::make_unique<MpiOperation>(
      *this, call,
      MpiMessages::Route{comm_, tag_of(call.number, code_of(signature)), options_.message_limit,
                         numbers_});
}

void MpiCommunicator::exchange_hosts() {
  using Name = std::array<char, MPI_MAX_PROCESSOR_NAME>;
  std::vector<Name> names(static_cast<size_t>(world_size_), Name{});
  int length = 0;
  check_mpi(MPI_Get_processor_name(names[static_cast<size_t>(rank_)].data(), &length),
            "MPI_Get_processor_name");
  std::vector<ByteRange> ranges;
  for (size_t p = 0; p < names.size(); ++p) ranges.push_back({p * sizeof(Name), sizeof(Name)});
  all_gather(std::as_writable_bytes(std::span(names)), ranges).wait("the host names of all ranks");
  for (size_t p = 0; p < names.size(); ++p) hosts_[p] = names[p].data();
}

MPI_Comm MpiCommunicator::duplicate() {
  // On the heap, and left there on failure: MPI may still write to it.
  auto copy = std::make_unique<MPI_Comm>(MPI_COMM_NULL);
  try {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Comm_idup(comm_, copy.get(), &request), "MPI_Comm_idup");
    auto operation = start({.verb = Verb::kBarrier});
    operation->messages().adopt(request);
    operation->wait("the communicator of all ranks");
  } catch (...) {
    [[maybe_unused]] MPI_Comm* leaked = copy.release();
    throw;
  }
  check_mpi(MPI_Comm_set_errhandler(*copy, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  return *copy;
}

// ----------------------------------------------------------------------------------------------
// verbs

Pending MpiCommunicator::all_to_all(std::span<const std::byte> send,
                                    std::span<const ByteRange> send_ranges,
                                    std::span<std::byte> receive,
                                    std::span<const ByteRange> receive_ranges) {
  check_ranges(send_ranges, send.size(), world_size_, "all_to_all, send");
  check_ranges(receive_ranges, receive.size(), world_size_, "all_to_all, receive");
  const ByteRange own_send = send_ranges[static_cast<size_t>(rank_)];
  const ByteRange own_receive = receive_ranges[static_cast<size_t>(rank_)];
  check_own_slice(own_send, own_receive);
  auto operation = start({.verb = Verb::kAllToAll});
  for (int i = world_size_ - 1; i >= 1; --i) {
    const ByteRange& range = receive_ranges[static_cast<size_t>(other(i))];
    operation->messages().receive(other(i), receive.data() + range.offset, range.size);
  }
  for (int i = 1; i < world_size_; ++i) {
    const ByteRange& range = send_ranges[static_cast<size_t>(other(i))];
    operation->messages().send(other(i), send.data() + range.offset, range.size);
  }
  if (own_send.size > 0) {
    std::memcpy(receive.data() + own_receive.offset, send.data() + own_send.offset, own_send.size);
  }
  return Pending(std::move(operation));
}

Pending MpiCommunicator::all_gather(std::span<std::byte> buffer,
                                    std::span<const ByteRange> ranges) {
  check_ranges(ranges, buffer.size(), world_size_, "all_gather");
  uint64_t bytes = 0;
  for (const ByteRange& range : ranges) bytes += range.size;
  auto operation = start({.verb = Verb::kAllGather, .bytes = bytes});
  const ByteRange own = ranges[static_cast<size_t>(rank_)];
  for (int i = world_size_ - 1; i >= 1; --i) {
    const ByteRange& range = ranges[static_cast<size_t>(other(i))];
    operation->messages().receive(other(i), buffer.data() + range.offset, range.size);
  }
  for (int i = 1; i < world_size_; ++i) {
    operation->messages().send(other(i), buffer.data() + own.offset, own.size);
  }
  return Pending(std::move(operation));
}

Pending MpiCommunicator::all_reduce(std::span<int64_t> values, ReduceOp op) {
  auto operation = start({.verb = Verb::kAllReduce, .op = op, .bytes = values.size_bytes()});
  // One hop, everyone to everyone: few values, and ranks that share cores are woken once instead of
  // log N times. Integers add in any order to the same bits.
  const auto others = static_cast<size_t>(world_size_ - 1);
  auto received = std::make_shared<std::vector<int64_t>>(others * values.size());
  for (size_t i = others; i >= 1; --i) {
    operation->messages().receive(
        other(static_cast<int>(i)),
        reinterpret_cast<std::byte*>(received->data() + (i - 1) * values.size()),
        values.size_bytes());
  }
  for (int i = 1; i < world_size_; ++i) {
    operation->messages().send(other(i), std::as_bytes(values).data(), values.size_bytes());
  }
  operation->then([values, op, received, others] {
    for (size_t i = 0; i < others; ++i) {
      combine(values, received->data() + i * values.size(), op);
    }
  });
  return Pending(std::move(operation));
}

Pending MpiCommunicator::broadcast(std::span<std::byte> buffer, int root) {
  check_root(root, world_size_);
  auto operation = start({.verb = Verb::kBroadcast, .root = root, .bytes = buffer.size()});
  // Binomial tree over v = rank - root: v's parent is v without its lowest set bit.
  const int v = (rank_ - root + world_size_) % world_size_;
  const int lowest = v == 0 ? INT_MAX : v & -v;
  const auto rank_of = [this, root](int position) { return (position + root) % world_size_; };
  auto relay = [this, v, lowest, rank_of, buffer, messages = &operation->messages()] {
    for (int bit = 1; bit < lowest && v + bit < world_size_; bit *= 2) {
      messages->send(rank_of(v + bit), buffer.data(), buffer.size());
    }
  };
  if (v == 0) {
    relay();
  } else {
    operation->messages().receive(rank_of(v - lowest), buffer.data(), buffer.size());
    operation->then(relay);
  }
  return Pending(std::move(operation));
}

Pending MpiCommunicator::barrier() {
  auto operation = start({.verb = Verb::kBarrier});
  for (int i = 1; i < world_size_; ++i) operation->messages().receive(other(i), nullptr, 0);
  for (int i = 1; i < world_size_; ++i) operation->messages().send(other(i), nullptr, 0);
  return Pending(std::move(operation));
}

// MPI_Comm_split has no form that a deadline can end. A duplicate of the whole keeps the messages
// of all groups of a split apart from others, and groups have no rank in common.
std::unique_ptr<Communicator> MpiCommunicator::split(int color) {
  check_split(whole_ != nullptr, color);
  const std::vector<int> members = ranks_of_color(*this, color);
  return std::make_unique<MpiCommunicator>(*this, members, duplicate());
}

// ----------------------------------------------------------------------------------------------
// failure

void MpiCommunicator::abort(ExitCode code) noexcept {
  const int status = static_cast<int>(code);
  environment_->mark_failed();
  try {
    const ExitTimer timer(kAbortLimit, code, "MPI_Abort did not return: leaving without it");
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, status);
  } catch (...) {
    // Without a timer (no more threads) a plain exit is the one way that cannot hang.
  }
  _exit(status);
}

void MpiCommunicator::throw_failure(std::string_view what, const CallInFlight& call) const {
  throw CommunicationError(
      failure_->what, fmt::format("{}: {}, call {}", what, describe(call.signature), call.number),
      failure_->hint, failure_->late_ranks);
}

void MpiCommunicator::throw_if_failed(std::string_view what, const CallInFlight& call) const {
  if (failure_) throw_failure(what, call);
}

void MpiCommunicator::abandon() noexcept {
  if (failure_) return;
  environment_->mark_failed();
  failure_ = Failure{"this rank gave up a call unfinished", "", {number()}};
}

void MpiCommunicator::fail(const CallInFlight& call, std::string_view what,
                           const std::string& error, const std::string& hint,
                           std::vector<int> late_ranks) {
  environment_->mark_failed();
  failure_ = Failure{error, hint, std::move(late_ranks)};
  Attendance own{.call = call.number, .signature = call.signature, .failed = 1};
  own.set_reason(error);
  exchange_attendance(own);
  throw_failure(what, call);
}

void MpiCommunicator::call_roll(const CallInFlight& call, std::span<const int> awaited,
                                std::string_view what, double waited_seconds) {
  environment_->mark_failed();
  failure_ = Failure{"a deadline has passed", "", {}};
  Attendance own{
      .call = call.number, .signature = call.signature, .waited_seconds = waited_seconds};
  own.set_reason(what);
  const auto answers = exchange_attendance(own);
  Diagnosis diagnosis = diagnose({.rank = rank_,
                                  .own = own,
                                  .answers = answers,
                                  .awaited = awaited,
                                  .hosts = hosts_,
                                  .numbers = numbers_});
  failure_ = Failure{std::move(diagnosis.what), std::move(diagnosis.hint),
                     std::move(diagnosis.late_ranks)};
  throw_failure(what, call);
}

std::vector<std::optional<Attendance>> MpiCommunicator::exchange_attendance(const Attendance& own) {
  const auto size = static_cast<size_t>(world_size_);
  std::vector<Attendance> received(size);
  std::vector<std::optional<Attendance>> answers(size);
  // Declared after what they write to: they are withdrawn first.
  MpiMessages messages({comm_, roll_call_tag(), options_.message_limit, numbers_});
  try {
    for (int i = 1; i < world_size_; ++i) {
      auto* slot = reinterpret_cast<std::byte*>(&received[static_cast<size_t>(other(i))]);
      messages.receive(other(i), slot, sizeof(Attendance));
      messages.send(other(i), reinterpret_cast<const std::byte*>(&own), sizeof(Attendance));
    }
    const Clock::time_point start = Clock::now();
    Backoff backoff;
    while (!messages.advance() && seconds_since(start) < options_.roll_call_grace.count()) {
      backoff.pause();
    }
  } catch (const CommunicationError&) {
    // MPI itself refuses: those whose answers came before count as present, the rest as absent.
  }
  for (int i = 1; i < world_size_; ++i) {
    const auto p = static_cast<size_t>(other(i));
    if (messages.received_from(other(i))) answers[p] = received[p];
  }
  return answers;
}

bool MpiCommunicator::roll_is_called() const {
  int found = 0;
  check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, roll_call_tag(), comm_, &found, MPI_STATUS_IGNORE),
            "MPI_Iprobe");
  return found != 0;
}

void MpiCommunicator::listen(const MpiOperation& operation, std::string_view what,
                             double waited_seconds) {
  const CallInFlight& call = operation.call();
  const auto awaited = [&] { return operation.messages().awaited(); };
  if (roll_is_called()) call_roll(call, awaited(), what, waited_seconds);
  if (whole_ != nullptr && whole_->roll_is_called()) {
    // Others wait in the whole for a rank that is late here: a rank that kept silent would be named
    // beside it.
    whole_->call_roll({whole_->next_call_, call.signature, call.deadline},
                      numbers_of(awaited(), numbers_), what, waited_seconds);
  }
  int found = 0;
  MPI_Status status;
  for (int code = 0; code < kSignatureCodes; ++code) {
    if (code == code_of(call.signature)) continue;
    const int tag = tag_of(call.number, code);
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, tag, comm_, &found, &status), "MPI_Iprobe");
    if (found == 0) continue;
    fail(call, what,
         fmt::format("the ranks' calls do not match: call {} is {} on rank {}, {} on rank {}",
                     call.number, describe(call.signature), number(), name_of_code(code),
                     status.MPI_SOURCE),
         "every rank must make the same calls in the same order with matching sizes",
         {status.MPI_SOURCE});
  }
}

}  // namespace

// ----------------------------------------------------------------------------------------------
// environment

MpiEnvironment::MpiEnvironment(std::chrono::duration<double> deadline) : deadline_(deadline) {
  check_deadline(deadline);
  int initialized = 0;
  check_mpi(MPI_Initialized(&initialized), "MPI_Initialized");
  if (initialized != 0) {
    throw Error(ExitCode::kInternal, "MPI is initialized already", "MPI environment",
                "one MpiEnvironment per process");
  }
  const ExitTimer timer(deadline, ExitCode::kCommunication,
                        fmt::format("MPI_Init did not return within {}: a rank did not start",
                                    format_seconds(deadline.count())));
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_SERIALIZED) {
    throw Error(ExitCode::kUsage, "this MPI library does not support threads", "MPI_Init_thread",
                "use an MPI built with MPI_THREAD_SERIALIZED or higher");
  }
}

MpiEnvironment::~MpiEnvironment() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0 || failed_ || std::uncaught_exceptions() > 0) return;
  const ExitTimer timer(
      deadline_, ExitCode::kCommunication,
      fmt::format("MPI_Finalize did not return within {}: a rank did not come to the end",
                  format_seconds(deadline_.count())));
  MPI_Finalize();
}

std::unique_ptr<Communicator> make_mpi_communicator(std::shared_ptr<MpiEnvironment> environment,
                                                    const MpiOptions& options) {
  return std::make_unique<MpiCommunicator>(std::move(environment), options);
}

}  // namespace flashshard
