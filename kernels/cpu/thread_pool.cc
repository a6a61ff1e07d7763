// Publication of a job and the wait for its end: an atomic for the short spin, a condition variable
// for the rest.
#include "kernels/cpu/thread_pool.h"

#include <cassert>
#include <chrono>

namespace flashshard::cpu {
namespace {

/// Spins until `ready` or for at most three microseconds; true when ready.
template <class Ready>
bool spin_briefly(Ready ready) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(3);
  do {
    if (ready()) return true;
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) : threads_(threads), errors_(static_cast<size_t>(threads)) {
  assert(threads > 0);
  workers_.reserve(static_cast<size_t>(threads - 1));
  for (int p = 1; p < threads; ++p) workers_.emplace_back([this, p] { work(p); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    ++generation_;
  }
  published_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_job(const Job& job) {
  if (job.tasks <= 0) return;
  if (threads_ == 1 || job.tasks == 1) {
    for (int64_t task = 0; task < job.tasks; ++task) job.call(job.body, task, 0);
    return;
  }
  assert(busy_ == 0);
  job_ = job;
  busy_ = threads_ - 1;
  {
    std::lock_guard lock(mutex_);
    ++generation_;
  }
  published_.notify_all();
  run_share(0);
  wait_for_workers();
  std::exception_ptr first;
  for (std::exception_ptr& error : errors_) {
    if (error && !first) first = error;
    error = nullptr;
  }
  if (first) std::rethrow_exception(first);
}

void ThreadPool::run_share(int participant) noexcept {
  const int64_t first = job_.tasks * participant / threads_;
  const int64_t last = job_.tasks * (participant + 1) / threads_;
  try {
    for (int64_t task = first; task < last; ++task) job_.call(job_.body, task, participant);
  } catch (...) {
    errors_[static_cast<size_t>(participant)] = std::current_exception();
  }
}

void ThreadPool::work(int participant) {
  uint64_t seen = 0;
  for (;;) {
    const auto is_new = [&] { return generation_.load() != seen; };
    if (!spin_briefly(is_new)) {
      std::unique_lock lock(mutex_);
      published_.wait(lock, is_new);
    }
    seen = generation_.load();
    if (stopping_) return;
    run_share(participant);
    if (--busy_ == 0) {
      // Under the lock, or the caller could miss it between its check and its wait.
      std::lock_guard lock(mutex_);
      finished_.notify_one();
    }
  }
}

void ThreadPool::wait_for_workers() {
  const auto is_done = [&] { return busy_.load() == 0; };
  if (spin_briefly(is_done)) return;
  std::unique_lock lock(mutex_);
  finished_.wait(lock, is_done);
}

}  // namespace flashshard::cpu
