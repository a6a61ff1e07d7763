// Input files of `prepare` as documents of both splits: text whose blocks or lines are held out,
// and JSONL whose documents are. The rules stand in docs/data.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/data/dataset_writer.h"
#include "runtime/data/file.h"
#include "runtime/data/prepare.h"
#include "runtime/data/tokenizer.h"

namespace flashshard::data {

/// What becomes of the inputs' text. One object for all inputs, in their order.
class DocumentSource {
 public:
  virtual ~DocumentSource() = default;
  /// The next input begins.
  virtual void begin(const std::filesystem::path& path) = 0;
  /// Its text, in order. Throws Error(kBadData).
  virtual void append(std::span<const std::byte> text) = 0;
  /// It ends.
  virtual void end() = 0;
  /// All have ended: everything must have reached the writer.
  virtual void finish() {}
};

/// A file is a document; its bytes are tokens, and blocks of bytes are held out.
std::unique_ptr<DocumentSource> make_byte_text_source(const HeldOutBlocks& blocks,
                                                      DatasetWriter& writer);

/// A file is a document; a line is held out when its first byte lies in a held-out block.
std::unique_ptr<DocumentSource> make_line_text_source(const HeldOutBlocks& blocks,
                                                      Tokenizer& tokenizer, DatasetWriter& writer);

/// A line is a JSON object and a document: the text of `fields`, one after the other. Of several
/// fields only the last one counts in the loss. Document i is held out like block i.
std::unique_ptr<DocumentSource> make_jsonl_source(const HeldOutBlocks& blocks,
                                                  const std::vector<std::string>& fields,
                                                  Tokenizer& tokenizer, DatasetWriter& writer);

}  // namespace flashshard::data
