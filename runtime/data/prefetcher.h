// Reads the next micro-batch on a thread of its own while the trainer computes on the current one.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/data/token_dataset.h"

namespace flashshard::data {

struct MicroBatch {
  std::vector<int32_t> inputs;           // (sequences, sequence_length)
  std::vector<int32_t> targets;          // (sequences, sequence_length)
  std::vector<int32_t> document_starts;  // (sequences, sequence_length), or empty
  int64_t sequences = 0;
  int64_t first_sequence = 0;
};

/// Two buffers: the caller holds one, the thread fills the other. One caller.
class Prefetcher {
 public:
  struct Options {
    int64_t sequences = 0;         // of a micro-batch
    int64_t sequence_length = 0;   // tokens
    bool document_starts = false;  // are wanted too
    /// First sequence of this rank's k-th micro-batch, k = 0, 1, ...; for example a
    /// MicroBatchSchedule.
    std::function<int64_t(int64_t k)> schedule;
    /// Fills sequences [first, first + count) into buffers of (count, sequence_length); for example
    /// SequenceSampler::fill. Both functions are called on the prefetch thread and what they refer
    /// to must outlive the prefetcher.
    std::function<void(int64_t first, int64_t count, const SequenceBuffers& buffers)> fill;
  };

  /// Starts reading at once.
  explicit Prefetcher(Options options);
  /// Waits for the read under way, at most one micro-batch.
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// The next micro-batch, valid until the next call. Rethrows what schedule or fill threw for it,
  /// again at every further call; micro-batches read before the error are delivered first.
  const MicroBatch& next();
  /// Milliseconds that next() has waited since the last call of this function.
  double take_wait_ms();

 private:
  static constexpr int64_t kBuffers = 2;

  void run();
  MicroBatch& buffer(int64_t k) { return buffers_[static_cast<size_t>(k % kBuffers)]; }

  Options options_;
  std::array<MicroBatch, kBuffers> buffers_;
  double wait_ms_ = 0;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  int64_t filled_ = 0;     // micro-batches read
  int64_t requested_ = 0;  // micro-batches handed out; all but the latest are free again
  bool stopping_ = false;
  std::exception_ptr error_;  // of micro-batch `filled_`

  std::thread thread_;  // last: it uses everything above
};

}  // namespace flashshard::data
