// A rank's rows on their way into its files by way of memory of their own. They are copied in the
// order of the files, as far ahead of the writing as the memory reaches; what is copied may change
// again while it is still to be written.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <span>
#include <vector>

#include "runtime/checkpoint/shard_file.h"

namespace flashshard::checkpoint {

class StagedRows {
 public:
  /// Of the files of a shard of the layout. Views and memory must outlive it. Throws Error(kUsage)
  /// when the memory is smaller than a unit of a tensor.
  StagedRows(const Schema& schema, int shard, std::span<const ShardTensorView> views,
             std::span<std::byte> memory);

  /// About the bytes of a piece: several fit into the memory.
  size_t piece_bytes() const { return piece_bytes_; }
  /// Before the first piece is asked for: from now on the rows must wait.
  void begin();
  /// For one thread: copies the pieces that there is room for.
  void copy_ahead();
  /// For that thread, a ShardBytes: gives the pieces in the order of the files, and copies ahead.
  std::span<const std::byte> next(const ShardEntry& entry, RowRange rows);
  /// That thread has ended, with the last piece or before: nothing is read any more.
  void end();

  /// Waits until these rows of a tensor are copied, weight and states, or nothing is read any more.
  /// False when `deadline` passed and nothing was copied meanwhile. Any thread.
  bool wait_until_copied(int tensor, RowRange rows, std::chrono::duration<double> deadline);

 private:
  struct Piece {
    int tensor = 0;
    RowRange rows;
    std::span<const std::byte> bytes;
  };
  struct Place {
    size_t offset = 0;
    size_t size = 0;
  };

  /// Where a piece of so many bytes fits behind those that are held; false when it does not.
  bool find_place(size_t size, Place& place) const;
  size_t pieces_until(int tensor, RowRange rows) const;

  std::span<std::byte> memory_;
  size_t piece_bytes_ = 0;
  std::vector<Piece> pieces_;                   // in the order of the files
  std::vector<std::vector<size_t>> of_tensor_;  // indices of a tensor's pieces
  std::deque<Place> held_;                      // copied and not yet written, the oldest first
  bool handed_out_ = false;                     // the oldest one

  std::mutex mutex_;
  std::condition_variable changed_;
  size_t copied_ = 0;  // all: nothing is read
};

}  // namespace flashshard::checkpoint
