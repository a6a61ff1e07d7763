#include "comm/delay.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <thread>
#include <utility>

namespace flashshard {

namespace {

using Clock = std::chrono::steady_clock;

class DelayedOperation : public Pending::Operation {
 public:
  DelayedOperation(Pending pending, Clock::time_point arrival)
      : pending_(std::move(pending)), arrival_(arrival) {}

  void wait(std::string_view what) override {
    pending_.wait(what);
    std::this_thread::sleep_until(arrival_);
  }
  bool test() override { return pending_.test() && Clock::now() >= arrival_; }

 private:
  Pending pending_;
  Clock::time_point arrival_;
};

/// A rank's link, which all its communicators share.
struct Link {
  LinkOptions options;
  Clock::time_point free;  // when the transfers so far have left it
};

class DelayedCommunicator : public Communicator {
 public:
  DelayedCommunicator(std::unique_ptr<Communicator> communicator, std::shared_ptr<Link> link)
      : communicator_(std::move(communicator)), link_(std::move(link)) {}

  int rank() const override { return communicator_->rank(); }
  int world_size() const override { return communicator_->world_size(); }
  std::string_view transport() const override { return communicator_->transport(); }
  std::string_view host(int rank) const override { return communicator_->host(rank); }
  void set_deadline(std::chrono::duration<double> deadline) override {
    communicator_->set_deadline(deadline);
  }

  Pending all_to_all(std::span<const std::byte> send, std::span<const ByteRange> send_ranges,
                     std::span<std::byte> receive,
                     std::span<const ByteRange> receive_ranges) override {
    Pending pending = communicator_->all_to_all(send, send_ranges, receive, receive_ranges);
    return delayed(std::move(pending),
                   std::max(bytes_of_others(send_ranges), bytes_of_others(receive_ranges)));
  }
  Pending all_gather(std::span<std::byte> buffer, std::span<const ByteRange> ranges) override {
    Pending pending = communicator_->all_gather(buffer, ranges);
    return delayed(std::move(pending), std::max(others() * ranges[static_cast<size_t>(rank())].size,
                                                bytes_of_others(ranges)));
  }
  Pending all_reduce(std::span<int64_t> values, ReduceOp op) override {
    return delayed(communicator_->all_reduce(values, op), others() * values.size_bytes());
  }
  Pending broadcast(std::span<std::byte> buffer, int root) override {
    return delayed(communicator_->broadcast(buffer, root), buffer.size());
  }
  Pending barrier() override { return delayed(communicator_->barrier(), 0); }
  std::unique_ptr<Communicator> split(int color) override {
    return std::make_unique<DelayedCommunicator>(communicator_->split(color), link_);
  }

  void abort(ExitCode code) noexcept override { communicator_->abort(code); }

 private:
  size_t others() const { return static_cast<size_t>(world_size() - 1); }

  size_t bytes_of_others(std::span<const ByteRange> ranges) const {
    size_t bytes = 0;
    for (size_t p = 0; p < ranges.size(); ++p) {
      if (p != static_cast<size_t>(rank())) bytes += ranges[p].size;
    }
    return bytes;
  }

  Pending delayed(Pending pending, size_t bytes) {
    if (world_size() == 1) return pending;
    const std::chrono::duration<double> sending{static_cast<double>(bytes) /
                                                link_->options.bytes_per_second};
    link_->free = std::max(Clock::now(), link_->free) + rounded_up(sending);
    return Pending(std::make_unique<DelayedOperation>(
        std::move(pending), link_->free + rounded_up(link_->options.latency)));
  }

  static Clock::duration rounded_up(std::chrono::duration<double> time) {
    return std::chrono::ceil<Clock::duration>(time);
  }

  std::unique_ptr<Communicator> communicator_;
  std::shared_ptr<Link> link_;
};

}  // namespace

std::unique_ptr<Communicator> make_delayed_communicator(std::unique_ptr<Communicator> communicator,
                                                        const LinkOptions& link) {
  const double latency = link.latency.count();
  if (!(latency >= 0) || !std::isfinite(latency) || !(link.bytes_per_second > 0)) {
    throw Error(ExitCode::kInternal,
                fmt::format("a link of {} s and {} bytes per second is not usable", latency,
                            link.bytes_per_second),
                "delayed communicator");
  }
  return std::make_unique<DelayedCommunicator>(std::move(communicator),
                                               std::make_shared<Link>(Link{link, {}}));
}

}  // namespace flashshard
