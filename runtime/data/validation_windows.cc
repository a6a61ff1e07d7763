#include "runtime/data/validation_windows.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/error.h"

namespace flashshard::data {

ValidationWindows::ValidationWindows(const TokenDataset& dataset, const Options& options)
    : dataset_(dataset), options_(options) {
  const int64_t length = options.sequence_length;
  if (length < 1 || options.most_sequences < 0) {
    throw Error(ExitCode::kUsage,
                fmt::format("validation windows of {} tokens, at most {} of them", length,
                            options.most_sequences),
                "ValidationWindows");
  }
  if (dataset.token_count() < 2) {
    throw Error(ExitCode::kBadData, "one token alone cannot be validated on",
                dataset.folder().string(), "prepare it with a larger validation fraction");
  }
  windows_ = (dataset.token_count() - 2) / length + 1;
  selected_ = options.most_sequences == 0 ? windows_ : std::min(options.most_sequences, windows_);
}

int64_t ValidationWindows::window(int64_t sequence) const {
  // floor(sequence * windows / selected), with no product that could overflow.
  const int64_t stride = windows_ / selected_;
  const int64_t rest = windows_ % selected_;
  return sequence * stride + sequence * rest / selected_;
}

int64_t ValidationWindows::targets_in(int64_t sequence) const {
  const int64_t first = window(sequence) * options_.sequence_length;
  return std::min(options_.sequence_length, dataset_.token_count() - 1 - first);
}

int64_t ValidationWindows::target_count() const {
  // Only the split's last window can be short, and only the last one selected can be it.
  return (selected_ - 1) * options_.sequence_length + targets_in(selected_ - 1);
}

int64_t ValidationWindows::fill_row(int64_t sequence, const SequenceBuffers& row) const {
  const int64_t held = sequence < selected_ ? targets_in(sequence) : 0;
  const auto size = static_cast<size_t>(held);
  if (held > 0) {
    dataset_.read_window(window(sequence) * options_.sequence_length, row.part(0, size));
  }
  std::ranges::fill(row.inputs.subspan(size), kPaddingInput);
  std::ranges::fill(row.targets.subspan(size), kUncountedTarget);
  if (!row.document_starts.empty()) {
    std::ranges::fill(row.document_starts.subspan(size), static_cast<int32_t>(held));
  }
  return std::ssize(row.targets) - std::ranges::count(row.targets, kUncountedTarget);
}

int64_t ValidationWindows::fill(int64_t first_sequence, int64_t count,
                                const SequenceBuffers& buffers) const {
  const auto length = static_cast<size_t>(options_.sequence_length);
  if (first_sequence < 0 || count < 0 || !buffers.have_size(static_cast<size_t>(count) * length)) {
    throw Error(ExitCode::kInternal, "buffers do not fit the windows asked for",
                "ValidationWindows::fill");
  }
  int64_t held = 0;
  for (int64_t row = 0; row < count; ++row) {
    const size_t at = static_cast<size_t>(row) * length;
    held += fill_row(first_sequence + row, buffers.part(at, length));
  }
  return held;
}

}  // namespace flashshard::data
