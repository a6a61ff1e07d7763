#include "runtime/checkpoint/staged_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace flashshard::checkpoint {
namespace {

// So that some pieces can be copied while one is written.
constexpr size_t kLeastPieces = 4;

}  // namespace

StagedRows::StagedRows(const Schema& schema, int shard, std::span<const ShardTensorView> views,
                       std::span<std::byte> memory)
    : memory_(memory),
      piece_bytes_(std::min(kPieceBytes, memory.size() / kLeastPieces)),
      of_tensor_(static_cast<size_t>(schema.layout.tensors())) {
  const ShardBytes bytes = bytes_of_views(schema, views);
  for (const FileKind kind : {FileKind::kWeights, FileKind::kState}) {
    for (const ShardEntry& entry : plan_file(schema, kind, shard).entries) {
      const int64_t piece = rows_of_piece(schema, entry, piece_bytes_);
      const int64_t last = entry.rows.first + entry.rows.count;
      for (int64_t row = entry.rows.first; row < last; row += piece) {
        const RowRange rows{row, std::min(piece, last - row)};
        of_tensor_[static_cast<size_t>(entry.tensor)].push_back(pieces_.size());
        pieces_.push_back({entry.tensor, rows, bytes(entry, rows)});
        if (pieces_.back().bytes.size() <= memory_.size()) continue;
        throw Error(ExitCode::kUsage,
                    fmt::format("checkpoint.staging_bytes has no room for one unit of tensor {}: "
                                "{} bytes",
                                in_quotes(schema.layout.parameter(entry.tensor).name),
                                pieces_.back().bytes.size()),
                    {}, "raise it, or set checkpoint.async to false");
      }
    }
  }
  copied_ = pieces_.size();
}

bool StagedRows::find_place(size_t size, Place& place) const {
  if (held_.empty()) {
    place = {0, size};
    return size <= memory_.size();
  }
  const size_t first = held_.front().offset;
  const size_t end = held_.back().offset + held_.back().size;
  const bool wrapped = end <= first;
  if (wrapped ? size <= first - end : size <= memory_.size() - end) {
    place = {end, size};
    return true;
  }
  place = {0, size};
  return !wrapped && size <= first;
}

void StagedRows::copy_ahead() {
  // Only this thread changes what it counts.
  for (size_t next = copied_; next < pieces_.size(); ++next) {
    const Piece& piece = pieces_[next];
    Place place;
    if (!find_place(piece.bytes.size(), place)) return;
    std::memcpy(memory_.data() + place.offset, piece.bytes.data(), place.size);
    held_.push_back(place);
    {
      const std::lock_guard lock(mutex_);
      copied_ = next + 1;
    }
    changed_.notify_all();
  }
}

std::span<const std::byte> StagedRows::next(const ShardEntry& entry, RowRange rows) {
  if (handed_out_) held_.pop_front();
  copy_ahead();
  handed_out_ = true;
  const Piece& piece = pieces_[copied_ - held_.size()];
  if (piece.tensor != entry.tensor || piece.rows.first != rows.first ||
      piece.rows.count != rows.count) {
    throw Error(ExitCode::kInternal, "rows are written in another order than they were staged");
  }
  return memory_.subspan(held_.front().offset, held_.front().size);
}

void StagedRows::begin() {
  held_.clear();
  handed_out_ = false;
  const std::lock_guard lock(mutex_);
  copied_ = 0;
}

void StagedRows::end() {
  {
    const std::lock_guard lock(mutex_);
    copied_ = pieces_.size();
  }
  changed_.notify_all();
}

size_t StagedRows::pieces_until(int tensor, RowRange rows) const {
  size_t until = 0;
  for (const size_t index : of_tensor_[static_cast<size_t>(tensor)]) {
    const RowRange& piece = pieces_[index].rows;
    const bool overlap =
        piece.first < rows.first + rows.count && rows.first < piece.first + piece.count;
    if (overlap) until = std::max(until, index + 1);
  }
  return until;
}

bool StagedRows::wait_until_copied(int tensor, RowRange rows,
                                   std::chrono::duration<double> deadline) {
  std::unique_lock lock(mutex_);
  if (copied_ == pieces_.size()) return true;
  const size_t wanted = pieces_until(tensor, rows);
  while (copied_ < wanted) {
    const size_t before = copied_;
    changed_.wait_for(lock, deadline, [&] { return copied_ > before; });
    if (copied_ == before) return false;
  }
  return true;
}

}  // namespace flashshard::checkpoint
