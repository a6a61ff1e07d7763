#include "comm/exit_timer.h"

#include <unistd.h>

#include <utility>

#include "comm/blocked_signals.h"

namespace flashshard {

ExitTimer::ExitTimer(std::chrono::duration<double> limit, ExitCode code, std::string line) {
  const BlockedSignals blocked;
  thread_ = std::thread([this, limit, code, text = std::move(line) + "\n"] {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, limit, [this] { return done_; })) return;
    // Nothing can be done about a stderr that does not take the line.
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
    _exit(static_cast<int>(code));
  });
}

ExitTimer::~ExitTimer() {
  {
    const std::lock_guard lock(mutex_);
    done_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

}  // namespace flashshard
