#include "runtime/data/document_bounds.h"

#include <cstring>
#include <utility>

namespace flashshard::data {
namespace {

uint64_t load_int64(std::span<const std::byte> bytes, size_t offset) {
  int64_t value = 0;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return static_cast<uint64_t>(value);
}

}  // namespace

void mark_documents(const DocumentMark& mark, std::span<const int32_t> tokens,
                    std::span<int32_t> marks) {
  const size_t shift = mark.place == DocumentMark::Place::kEnd ? 1 : 0;
  for (size_t i = shift; i < tokens.size(); ++i) {
    if (tokens[i - shift] == mark.token) marks[i] = 1;
  }
}

void marks_to_starts(std::span<int32_t> marks) {
  int32_t start = 0;
  for (size_t i = 0; i < marks.size(); ++i) {
    if (marks[i] != 0) start = static_cast<int32_t>(i);
    marks[i] = start;
  }
}

DocumentIndex::DocumentIndex(MappedFile file, const Tables& tables)
    : file_(std::move(file)), tables_(tables) {}

uint64_t DocumentIndex::first_token(uint64_t bound) const {
  const uint64_t sequence = load_int64(file_.bytes(), tables_.bounds_at + bound * sizeof(int64_t));
  if (sequence == tables_.sequences) return tables_.tokens;
  return load_int64(file_.bytes(), tables_.offsets_at + sequence * sizeof(int64_t)) /
         tables_.token_bytes;
}

void DocumentIndex::mark(uint64_t position, std::span<int32_t> marks) const {
  file_.check_not_shrunk();
  // The first bound at or behind `position`; the last one is the end of the file.
  uint64_t low = 0, high = tables_.bounds - 1;
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    if (first_token(middle) < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const uint64_t end = position + marks.size();
  for (uint64_t bound = low; bound < tables_.bounds; ++bound) {
    const uint64_t token = first_token(bound);
    if (token >= end) return;
    marks[token - position] = 1;
  }
}

}  // namespace flashshard::data
