// Ranks of one process, told that they run on several hosts.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"

namespace flashshard::checkpoint::test {

class RanksOnHosts final : public Communicator {
 public:
  /// `before_each` is called before this rank takes part in an exchange.
  RanksOnHosts(
      Communicator& inner, std::vector<std::string> hosts,
      std::function<void()> before_each = [] {})
      : inner_(inner), hosts_(std::move(hosts)), before_each_(std::move(before_each)) {}
  int rank() const override { return inner_.rank(); }
  int world_size() const override { return inner_.world_size(); }
  std::string_view transport() const override { return inner_.transport(); }
  std::string_view host(int rank) const override { return hosts_[static_cast<size_t>(rank)]; }
  void set_deadline(std::chrono::duration<double> deadline) override {
    inner_.set_deadline(deadline);
  }
  Pending all_to_all(std::span<const std::byte> send, std::span<const ByteRange> send_ranges,
                     std::span<std::byte> receive,
                     std::span<const ByteRange> receive_ranges) override {
    before_each_();
    return inner_.all_to_all(send, send_ranges, receive, receive_ranges);
  }
  Pending all_gather(std::span<std::byte> buffer, std::span<const ByteRange> ranges) override {
    before_each_();
    return inner_.all_gather(buffer, ranges);
  }
  Pending all_reduce(std::span<int64_t> values, ReduceOp op) override {
    before_each_();
    return inner_.all_reduce(values, op);
  }
  Pending broadcast(std::span<std::byte> buffer, int root) override {
    before_each_();
    return inner_.broadcast(buffer, root);
  }
  Pending barrier() override {
    before_each_();
    return inner_.barrier();
  }
  std::unique_ptr<Communicator> split(int color) override { return inner_.split(color); }
  void abort(ExitCode code) noexcept override { inner_.abort(code); }

 private:
  Communicator& inner_;
  std::vector<std::string> hosts_;
  std::function<void()> before_each_;
};

}  // namespace flashshard::checkpoint::test
