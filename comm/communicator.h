// Bytes between ranks. A Communicator is a set of ranks and few verbs, each asynchronous: a call
// returns a Pending, wait() finishes it under a deadline and names the ranks that are late. It
// knows no formula and no model.
//
// Transports: MPI (comm/mpi.h) and threads of one process (comm/threads.h), for tests. Every rank
// calls the same verbs in the same order with matching sizes. Buffers must stay untouched until
// wait() returns.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/error.h"

namespace flashshard {

/// A run of bytes of a v-collective: one per rank.
struct ByteRange {
  size_t offset = 0;
  size_t size = 0;
};

enum class ReduceOp : uint8_t { kSum, kMax, kMin };

/// Communication failed: a deadline passed, a peer is gone, or the communicator was aborted. Exit
/// code 6.
class CommunicationError : public Error {
 public:
  CommunicationError(const std::string& what, const std::string& where, const std::string& hint,
                     std::vector<int> late_ranks)
      : Error(ExitCode::kCommunication, what, where, hint), late_ranks_(std::move(late_ranks)) {}
  const std::vector<int>& late_ranks() const { return late_ranks_; }

 private:
  std::vector<int> late_ranks_;
};

class Pending;

class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;
  virtual std::string_view transport() const = 0;  // "mpi", "threads"
  /// Name of the host that a rank runs on (known at construction, no communication).
  virtual std::string_view host(int rank) const = 0;

  /// Seconds that any wait may take before CommunicationError; applies to calls made afterwards.
  virtual void set_deadline(std::chrono::duration<double> deadline) = 0;

  // send_ranges[p]: what goes to rank p, out of `send`; receive_ranges[p]: where rank p's bytes go
  // in `receive`.
  [[nodiscard]] virtual Pending all_to_all(std::span<const std::byte> send,
                                           std::span<const ByteRange> send_ranges,
                                           std::span<std::byte> receive,
                                           std::span<const ByteRange> receive_ranges) = 0;
  // ranges[p]: where rank p's bytes stand in `buffer`, the own ones already in place.
  [[nodiscard]] virtual Pending all_gather(std::span<std::byte> buffer,
                                           std::span<const ByteRange> ranges) = 0;
  [[nodiscard]] virtual Pending all_reduce(std::span<int64_t> values, ReduceOp op) = 0;
  [[nodiscard]] virtual Pending broadcast(std::span<std::byte> buffer, int root) = 0;
  [[nodiscard]] virtual Pending barrier() = 0;

  /// The ranks that give the same `color`, 0 or more, in the order of their ranks, as a
  /// communicator with calls of its own, which no other rank takes part in. Its errors name ranks
  /// by their numbers in the whole run. Collective; this one's deadline holds for it and in it, and
  /// this one must outlive it. Not of a split's own communicator. Throws CommunicationError.
  [[nodiscard]] virtual std::unique_ptr<Communicator> split(int color) = 0;

  /// Tells the peers that this rank will not go on, and ends what they wait for where the transport
  /// can: threads: their waits throw; MPI: MPI_Abort(code), itself under a deadline, then
  /// _exit(code).
  virtual void abort(ExitCode code) noexcept = 0;

 protected:
  Communicator() = default;
};

/// One started operation. wait() must be called before destruction unless an error is in flight.
class Pending {
 public:
  class Operation {
   public:
    virtual ~Operation() = default;
    /// Returns when the operation is complete, or throws CommunicationError. `what` names it for
    /// people.
    virtual void wait(std::string_view what) = 0;
    /// Makes progress without blocking; true when complete.
    virtual bool test() = 0;
  };

  Pending() = default;  // complete from the start
  explicit Pending(std::unique_ptr<Operation> operation) : operation_(std::move(operation)) {}

  /// `what` stands in the error of a missed deadline: "waiting for the reduction of bucket 3".
  void wait(std::string_view what) {
    if (operation_) operation_->wait(what);
    operation_.reset();
  }
  bool test() {
    if (operation_ && operation_->test()) operation_.reset();
    return !operation_;
  }

 private:
  std::unique_ptr<Operation> operation_;
};

}  // namespace flashshard
