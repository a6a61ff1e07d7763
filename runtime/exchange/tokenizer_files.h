// A tokenizer as files of a Hugging Face folder, and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "runtime/data/tokenizer.h"
#include "runtime/exchange/output_folder.h"

namespace flashshard::exchange {

/// tokenizer.json of the tokenizer whose tokens are bytes: byte-level BPE of 256 tokens without a
/// merge, token b for byte b.
std::string byte_tokenizer_json();

/// The character by which byte-level vocabularies write a byte (GPT-2's table: printable bytes as
/// they are, the others from U+0100 on), in UTF-8.
std::string byte_level_character(uint8_t byte);

/// Copies (bytes: writes) the files of `identity`, which lie in `from`, so that transformers opens
/// them, with a tokenizer.json of a SentencePiece model. Returns warnings: where transformers will
/// give other ids. Throws Error(kBadData): they are missing, or another tokenizer's.
std::vector<std::string> write_tokenizer_files(const data::TokenizerIdentity& identity,
                                               const std::filesystem::path& from,
                                               const OutputFolder& output);

/// Throws Error(kBadData) unless `path` is the model file that `identity` was made of.
void require_tokenizer_file(const data::TokenizerIdentity& identity,
                            const std::filesystem::path& path);

/// The special token that a tokenizer.json puts before every text, from the template of its
/// post-processor; data::kNoToken where it puts none, or several. Throws Error(kBadData) for a
/// damaged file.
int32_t beginning_of_text(const std::filesystem::path& tokenizer_json);

/// The tokenizer of a Hugging Face folder: bytes where tokenizer.json is byte_tokenizer_json(),
/// that of tokenizer.model where tokenizer.json was made of it here or is not there, else that of
/// tokenizer.json; nothing where it has none. Throws
/// Error(kUsage): python3's package `tokenizers` is missing. Error(kBadData): damaged files.
std::optional<data::TokenizerIdentity> identify_tokenizer(const std::filesystem::path& folder);

}  // namespace flashshard::exchange
