// Waiting politely for bytes: ranks may share cores with each other and with compute threads.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace flashshard {

/// Spins, then yields, then sleeps for a small share of the time already waited.
class Backoff {
 public:
  void reset() { start_ = Clock::now(); }

  /// Returns true when it slept.
  bool pause() {
    const Clock::duration waited = Clock::now() - start_;
    if (waited < kSpin) return false;
    if (waited < kYield) {
      std::this_thread::yield();
      return false;
    }
    std::this_thread::sleep_for(std::clamp<Clock::duration>(waited / 64, kShortest, kLongest));
    return true;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kSpin{20}, kYield{5000}, kShortest{50}, kLongest{1000};
  Clock::time_point start_ = Clock::now();
};

}  // namespace flashshard
