// A tokenizer as llama.cpp has it: the tokens with their types and scores or merges, in the
// metadata of a GGUF file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "runtime/data/tokenizer.h"
#include "runtime/exchange/gguf_header.h"

namespace flashshard::exchange {

struct GgufVocabulary {
  std::string model;      // "gpt2": byte-level BPE; "llama": SentencePiece's BPE
  std::string splitting;  // llama.cpp's name for how text is split before the merges
  std::vector<std::string> tokens;
  std::vector<int32_t> types;                  // SentencePiece's numbers: normal 1, control 3, ...
  std::vector<float> scores;                   // "llama"
  std::vector<std::string> merges;             // "gpt2"
  int32_t beginning_of_text = data::kNoToken;  // the token that stands before every text
  bool add_space_prefix = false;
  std::vector<std::string> warnings;  // where llama.cpp will split some texts differently
};

/// The tokenizer `identity`, whose files lie in `folder`, for an embedding of `rows`. Throws
/// Error(kUsage) for one that llama.cpp has no counterpart of, with the reason, and for a
/// tokenizer.json with a token beyond the rows; Error(kBadData) for files that are gone or
/// damaged.
GgufVocabulary read_gguf_vocabulary(const data::TokenizerIdentity& identity,
                                    const std::filesystem::path& folder, int64_t rows);

/// Adds the tokenizer's keys. `rows`: of the embedding; tokens are added up to it that no text
/// has. Throws Error(kUsage) when the vocabulary is larger.
void add_vocabulary(GgufVocabulary vocabulary, int32_t end_of_document, int64_t rows,
                    GgufHeader& header);

}  // namespace flashshard::exchange
