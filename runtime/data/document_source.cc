#include "runtime/data/document_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "kernels/error.h"
#include "runtime/data/text_lines.h"

namespace flashshard::data {
namespace {

constexpr size_t kBatchBytes = size_t{1} << 20;  // of text that a tokenizer gets at once
constexpr size_t kBatchPieces = 4096;

[[noreturn]] void refuse_zero(size_t position, const std::string& where) {
  throw Error(ExitCode::kBadData, fmt::format("text has a byte 0 at position {}", position), where,
              "byte 0 ends a document where tokens are bytes: remove it, or give --tokenizer");
}

class ByteTextSource : public DocumentSource {
 public:
  ByteTextSource(const HeldOutBlocks& blocks, DatasetWriter& writer)
      : blocks_(blocks), writer_(writer) {}

  void begin(const std::filesystem::path& path) override {
    path_ = path;
    begin_ = position_;
  }
  void append(std::span<const std::byte> text) override {
    if (const auto zero = std::ranges::find(text, std::byte{0}); zero != text.end()) {
      refuse_zero(static_cast<size_t>(position_ - begin_ + (zero - text.begin())), path_.string());
    }
    while (!text.empty()) {
      const int64_t block = position_ / blocks_.block_bytes();
      const int64_t room = (block + 1) * blocks_.block_bytes() - position_;
      const auto part = text.first(std::min(static_cast<size_t>(room), text.size()));
      split_ = blocks_.split_of(block);
      writer_.split(split_).append(part, Counted::kYes, std::ssize(part));
      position_ += std::ssize(part);
      text = text.subspan(part.size());
    }
  }
  void end() override { writer_.split(split_).end_document(); }

 private:
  const HeldOutBlocks& blocks_;
  DatasetWriter& writer_;
  std::filesystem::path path_;
  int64_t position_ = 0;  // over all inputs
  int64_t begin_ = 0;     // of this input
  Split split_ = Split::kTrain;
};

/// Text on its way through a tokenizer: in batches, because each one is a round trip.
class PieceEncoder {
 public:
  struct Piece {
    Split split = Split::kTrain;
    std::string text;
    Counted counted = Counted::kYes;
    bool ends_document = false;
  };
  PieceEncoder(Tokenizer& tokenizer, DatasetWriter& writer)
      : tokenizer_(tokenizer), writer_(writer) {}

  void add(Piece piece) {
    bytes_ += piece.text.size();
    pieces_.push_back(std::move(piece));
    if (bytes_ >= kBatchBytes || pieces_.size() >= kBatchPieces) flush();
  }
  void flush() {
    if (pieces_.empty()) return;
    const std::vector<std::string_view> texts = [this] {
      std::vector<std::string_view> views;
      for (const Piece& piece : pieces_) views.emplace_back(piece.text);
      return views;
    }();
    const auto encoded = tokenizer_.encode(texts);
    for (size_t i = 0; i < pieces_.size(); ++i) {
      const Piece& piece = pieces_[i];
      SplitWriter& writer = writer_.split(piece.split);
      writer.append(encoded[i], piece.counted, std::ssize(piece.text));
      if (piece.ends_document) writer.end_document();
    }
    pieces_.clear();
    bytes_ = 0;
  }

 private:
  Tokenizer& tokenizer_;
  DatasetWriter& writer_;
  std::vector<Piece> pieces_;
  size_t bytes_ = 0;
};

class LineTextSource : public DocumentSource {
 public:
  LineTextSource(const HeldOutBlocks& blocks, Tokenizer& tokenizer, DatasetWriter& writer)
      : blocks_(blocks), encoder_(tokenizer, writer) {}

  void begin(const std::filesystem::path& path) override {
    lines_.emplace(path, [this, path](std::string_view line, int64_t number) {
      if (const auto bad = first_invalid_utf8(line)) {
        throw Error(ExitCode::kBadData, fmt::format("text is not UTF-8 at byte {}", *bad),
                    fmt::format("{}, line {}", path.string(), number),
                    "convert it, or prepare it with --tokenizer byte");
      }
      add(line);
    });
  }
  void append(std::span<const std::byte> text) override { lines_->append(text); }
  void end() override {
    lines_->finish();
    pending_.ends_document = true;
    hand_over();
  }
  void finish() override { encoder_.flush(); }

 private:
  void add(std::string_view line) {
    const Split split = blocks_.split_of(position_ / blocks_.block_bytes());
    if (!pending_.text.empty() && (split != pending_.split || pending_.text.size() > kBatchBytes)) {
      hand_over();
    }
    pending_.split = split;
    pending_.text += line;
    position_ += std::ssize(line);
  }
  void hand_over() { encoder_.add(std::exchange(pending_, {.split = pending_.split, .text = {}})); }

  const HeldOutBlocks& blocks_;
  PieceEncoder encoder_;
  std::optional<LineReader> lines_;
  PieceEncoder::Piece pending_;  // lines of one split
  int64_t position_ = 0;         // over all inputs
};

class JsonlSource : public DocumentSource {
 public:
  JsonlSource(const HeldOutBlocks& blocks, const std::vector<std::string>& fields,
              Tokenizer& tokenizer, DatasetWriter& writer)
      : blocks_(blocks),
        fields_(fields),
        zero_ends_document_(tokenizer.identity().kind == "byte"),
        encoder_(tokenizer, writer) {}

  void begin(const std::filesystem::path& path) override {
    path_ = path;
    lines_.emplace(path, [this](std::string_view line, int64_t number) { add(line, number); });
  }
  void append(std::span<const std::byte> text) override { lines_->append(text); }
  void end() override { lines_->finish(); }
  void finish() override { encoder_.flush(); }

 private:
  [[noreturn]] void refuse(const std::string& what, int64_t line) const {
    throw Error(ExitCode::kBadData, what, where(line),
                "every line is one JSON object with the fields of --jsonl-fields as text");
  }
  std::string where(int64_t line) const { return fmt::format("{}, line {}", path_.string(), line); }

  nlohmann::json parse(std::string_view line, int64_t number) const {
    try {
      return nlohmann::json::parse(line);
    } catch (const nlohmann::json::parse_error& error) {
      refuse(fmt::format("is not JSON at byte {}", error.byte), number);
    } catch (const nlohmann::json::out_of_range&) {
      refuse("holds a number that is out of range", number);
    }
  }

  std::string text_of(const nlohmann::json& object, const std::string& field, int64_t line) const {
    const auto found = object.find(field);
    if (found == object.end()) refuse(fmt::format("has no field `{}`", field), line);
    if (!found->is_string()) refuse(fmt::format("field `{}` is not text", field), line);
    auto text = found->get<std::string>();
    if (zero_ends_document_) {
      if (const size_t zero = text.find('\0'); zero != std::string::npos) {
        refuse_zero(zero, fmt::format("{}, field `{}`", where(line), field));
      }
    }
    return text;
  }

  void add(std::string_view line, int64_t number) {
    if (line.find_first_not_of(" \t\r\n") == std::string_view::npos) return;
    const nlohmann::json object = parse(line, number);
    if (!object.is_object()) refuse("is not a JSON object", number);
    const Split split = blocks_.split_of(documents_++);
    for (const std::string& field : fields_) {
      const bool last = &field == &fields_.back();
      std::string text = text_of(object, field, number);
      if (last && text.empty()) refuse(fmt::format("field `{}` is empty", field), number);
      encoder_.add({.split = split,
                    .text = std::move(text),
                    .counted = last ? Counted::kYes : Counted::kNo,
                    .ends_document = last});
    }
  }

  const HeldOutBlocks& blocks_;
  std::vector<std::string> fields_;
  bool zero_ends_document_;
  PieceEncoder encoder_;
  std::filesystem::path path_;
  std::optional<LineReader> lines_;
  int64_t documents_ = 0;  // over all inputs
};

}  // namespace

std::unique_ptr<DocumentSource> make_byte_text_source(const HeldOutBlocks& blocks,
                                                      DatasetWriter& writer) {
  return std::make_unique<ByteTextSource>(blocks, writer);
}

std::unique_ptr<DocumentSource> make_line_text_source(const HeldOutBlocks& blocks,
                                                      Tokenizer& tokenizer, DatasetWriter& writer) {
  return std::make_unique<LineTextSource>(blocks, tokenizer, writer);
}

std::unique_ptr<DocumentSource> make_jsonl_source(const HeldOutBlocks& blocks,
                                                  const std::vector<std::string>& fields,
                                                  Tokenizer& tokenizer, DatasetWriter& writer) {
  return std::make_unique<JsonlSource>(blocks, fields, tokenizer, writer);
}

}  // namespace flashshard::data
