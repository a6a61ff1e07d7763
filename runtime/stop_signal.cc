// The handlers only store into a lock-free atomic, the one thing a signal handler may safely do.
#include "runtime/stop_signal.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <mutex>
#include <utility>

namespace flashshard {
namespace {

constexpr std::array<int, 3> kSignals = {SIGUSR1, SIGUSR2, SIGTERM};

// Ranks that are threads of one process share its signals: the first one catches them, the last one
// lets go.
std::mutex mutex;
int living = 0;
std::array<struct sigaction, kSignals.size()> previous = {};
std::atomic<int32_t> noted = 0;
static_assert(std::atomic<int32_t>::is_always_lock_free);

extern "C" void note_stop_signal(int signal_number) {
  StopCause cause = StopCause::kTerminate;
  if (signal_number == SIGUSR1) cause = StopCause::kUserSignal1;
  if (signal_number == SIGUSR2) cause = StopCause::kUserSignal2;
  int32_t earlier = noted.load();
  while (earlier < static_cast<int32_t>(cause) &&
         !noted.compare_exchange_weak(earlier, static_cast<int32_t>(cause))) {
  }
}

}  // namespace

std::string_view name_of(StopCause cause) {
  switch (cause) {
    case StopCause::kNone:
      return "nothing";
    case StopCause::kStopFile:
      return "the stop file";
    case StopCause::kUserSignal1:
      return "SIGUSR1";
    case StopCause::kUserSignal2:
      return "SIGUSR2";
    case StopCause::kTerminate:
      return "SIGTERM";
  }
  return "nothing";
}

StopSignal::StopSignal(std::filesystem::path stop_file) : stop_file_(std::move(stop_file)) {
  const std::lock_guard lock(mutex);
  if (living++ > 0) return;
  noted.store(0);
  struct sigaction action = {};
  action.sa_handler = note_stop_signal;
  // Reads and writes under way go on: a request must not look like a failed system call.
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &previous[i]);
}

StopSignal::~StopSignal() {
  const std::lock_guard lock(mutex);
  if (--living > 0) return;
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous[i], nullptr);
}

StopRequest StopSignal::poll() const {
  if (const int32_t cause = noted.load(); cause != 0) return {static_cast<StopCause>(cause)};
  if (!stop_file_.empty() && ::access(stop_file_.c_str(), F_OK) == 0) {
    return {StopCause::kStopFile};
  }
  return {};
}

void StopSignal::honoured() const {
  if (!stop_file_.empty()) ::unlink(stop_file_.c_str());
}

}  // namespace flashshard
