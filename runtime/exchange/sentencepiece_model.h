// A SentencePiece model file (github.com/google/sentencepiece), and the tokenizer.json (package
// `tokenizers`) that gives the same ids for the same text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "proto/sentencepiece.pb.h"

namespace flashshard::exchange {

/// SentencePiece's numbers for what a piece is.
enum class PieceType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};
/// ... and for what a model is.
enum class PieceModel : int32_t { kUnigram = 1, kBytePair = 2 };

/// True for a model that falls back to bytes: it has all 256.
bool falls_back_to_bytes(const proto::SentencePieceModel& model);

/// Throws Error(kBadData) for a file that is no model.
proto::SentencePieceModel read_sentencepiece_model(const std::filesystem::path& path);

/// tokenizer.json: the normalisation (its table of characters, extra spaces, the space before a
/// text), the vocabulary, and of a byte-pair model the merges that its scores mean. Nothing where
/// that format has no counterpart: other models than byte-pair and unigram, symbols defined by the
/// user, spaces that are not escaped or stand behind their words.
std::optional<std::string> sentencepiece_tokenizer_json(const proto::SentencePieceModel& model);

}  // namespace flashshard::exchange
