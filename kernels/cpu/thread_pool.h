// A rank's compute threads: `threads` participants, the calling thread being one of them.
//
// Work is cut statically, so which participant computes a task never depends on timing. Ranks share
// cores on small machines; an idle worker therefore spins for a few microseconds at most and then
// blocks.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace flashshard::cpu {

class ThreadPool {
 public:
  /// threads > 0; with 1 no thread is ever started.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  /// Calls body(task, participant) once for every task in [0, tasks) and returns when all are done;
  /// participant p of P takes tasks [tasks*p/P, tasks*(p+1)/P), in order. The first exception in
  /// order of participants is thrown again here. One call at a time, never from inside a body.
  template <class Body>
  void run(int64_t tasks, Body&& body) {
    using Callable = std::remove_reference_t<Body>;
    run_job({.body = std::addressof(body),
             .call =
                 [](const void* object, int64_t task, int participant) {
                   (*static_cast<Callable*>(const_cast<void*>(object)))(task, participant);
                 },
             .tasks = tasks});
  }

  /// Calls body(first, last) on a partition of [0, count) into at most one range per participant.
  template <class Body>
  void run_ranges(int64_t count, Body&& body) {
    const int64_t ranges = count < threads_ ? count : threads_;
    run(ranges,
        [&](int64_t range, int) { body(count * range / ranges, count * (range + 1) / ranges); });
  }

 private:
  struct Job {
    const void* body = nullptr;
    void (*call)(const void* body, int64_t task, int participant) = nullptr;
    int64_t tasks = 0;
  };

  void run_job(const Job& job);
  void run_share(int participant) noexcept;
  void work(int participant);
  void wait_for_workers();

  const int threads_;
  Job job_;
  std::vector<std::exception_ptr> errors_;  // one per participant
  std::atomic<uint64_t> generation_{0};     // goes up when a job is published
  std::atomic<int> busy_{0};                // workers that have not finished the job
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable published_, finished_;
  std::vector<std::thread> workers_;
};

}  // namespace flashshard::cpu
