#include "comm/exit_timer.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <utility>

namespace flashshard {

namespace {

/// Signals are for the threads of the run, not for this one.
class AllSignalsBlocked {
 public:
  AllSignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~AllSignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  AllSignalsBlocked(const AllSignalsBlocked&) = delete;
  AllSignalsBlocked& operator=(const AllSignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace

ExitTimer::ExitTimer(std::chrono::duration<double> limit, ExitCode code, std::string line) {
  const AllSignalsBlocked blocked;  // a new thread inherits the mask
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
