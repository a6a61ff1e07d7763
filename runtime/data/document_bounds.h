// Where documents begin in a text of tokens: behind a token that ends one, at a token that begins
// one, or where an index says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/data/file.h"
#include "runtime/data/tokenizer.h"

namespace flashshard::data {

/// A token that stands between two documents.
struct DocumentMark {
  enum class Place : uint8_t { kEnd, kBegin };
  int32_t token = kNoToken;   // kNoToken: there is none
  Place place = Place::kEnd;  // the last token of the document before, or the first of its own
};

/// marks[i] = 1 where a document begins at tokens[i] as the mark says. Whether one begins at
/// tokens[0] is not known where marks end documents: 0.
void mark_documents(const DocumentMark& mark, std::span<const int32_t> tokens,
                    std::span<int32_t> marks);

/// Puts into every element the index of the latest mark (non-zero) at or before it, 0 before the
/// first.
void marks_to_starts(std::span<int32_t> marks);

/// Document bounds of Megatron-LM's `.idx` file, read where they lie: documents begin at sequences,
/// sequences at bytes of the data file.
class DocumentIndex {
 public:
  /// Byte offsets of the tables in the file; all checked by the caller (foreign_data.cc).
  struct Tables {
    size_t offsets_at = 0;  // int64 byte offset of each sequence
    uint64_t sequences = 0;
    size_t bounds_at = 0;  // int64 first sequence of each document, then `sequences`
    uint64_t bounds = 0;   // documents + 1
    uint32_t token_bytes = 1;
    uint64_t tokens = 0;
  };
  DocumentIndex(MappedFile file, const Tables& tables);

  /// marks[i] = 1 where a document begins at token position + i of the data file. Throws
  /// Error(kBadData) when the index has shrunk.
  void mark(uint64_t position, std::span<int32_t> marks) const;

 private:
  uint64_t first_token(uint64_t bound) const;

  MappedFile file_;
  Tables tables_;
};

}  // namespace flashshard::data
