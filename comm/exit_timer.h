// Ends the process when a library call that has no deadline of its own does not return.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "kernels/error.h"

namespace flashshard {

/// From construction to destruction: when `limit` passes first, writes `line` to stderr and ends
/// the process by _exit(code).
class ExitTimer {
 public:
  ExitTimer(std::chrono::duration<double> limit, ExitCode code, std::string line);
  ~ExitTimer();
  ExitTimer(const ExitTimer&) = delete;
  ExitTimer& operator=(const ExitTimer&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::thread thread_;
};

}  // namespace flashshard
