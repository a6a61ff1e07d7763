#include "runtime/data/prefetcher.h"

#include <chrono>
#include <utility>

#include "comm/blocked_signals.h"
#include "kernels/error.h"

namespace flashshard::data {

Prefetcher::Prefetcher(Options options) : options_(std::move(options)) {
  if (options_.sequences < 1 || options_.sequence_length < 1 || !options_.schedule ||
      !options_.fill) {
    throw Error(ExitCode::kInternal, "a prefetcher needs a size, a schedule and a source",
                "Prefetcher");
  }
  const auto tokens = static_cast<size_t>(options_.sequences * options_.sequence_length);
  for (MicroBatch& batch : buffers_) {
    batch.sequences = options_.sequences;
    batch.inputs.resize(tokens);
    batch.targets.resize(tokens);
    if (options_.document_starts) batch.document_starts.resize(tokens);
  }
  const BlockedSignals blocked;
  thread_ = std::thread([this] { run(); });
}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Prefetcher::run() {
  for (int64_t k = 0;; ++k) {
    {
      std::unique_lock lock(mutex_);
      // Micro-batch k takes the place of k - kBuffers, which the caller has given back by asking
      // for a later one.
      changed_.wait(lock,
                    [&] { return stopping_ || k < kBuffers || k < requested_ - 1 + kBuffers; });
      if (stopping_) return;
    }
    std::exception_ptr error;
    try {
      MicroBatch& batch = buffer(k);
      batch.first_sequence = options_.schedule(k);
      options_.fill(batch.first_sequence, batch.sequences,
                    {batch.inputs, batch.targets, batch.document_starts});
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    error_ = error;
    if (!error) ++filled_;
    changed_.notify_all();
    if (error) return;
  }
}

const MicroBatch& Prefetcher::next() {
  const auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  const int64_t k = requested_;
  ++requested_;
  changed_.notify_all();
  changed_.wait(lock, [&] { return error_ || filled_ > k; });
  wait_ms_ +=
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  if (filled_ <= k) {
    --requested_;  // so that the same error is met again
    std::rethrow_exception(error_);
  }
  return buffer(k);
}

double Prefetcher::take_wait_ms() { return std::exchange(wait_ms_, 0.0); }

}  // namespace flashshard::data
