// Token files of other programs, mapped as they are: llm.c's `.bin` shards and Megatron-LM's
// `.bin` / `.idx` pairs. The layouts stand in docs/data.md.
#pragma once

#include <filesystem>
#include <vector>

#include "runtime/data/dataset_manifest.h"
#include "runtime/data/token_shard.h"

namespace flashshard::data {

/// True for what open_foreign_data takes: a file, a Megatron prefix (PATH.bin and PATH.idx), or a
/// folder with such files and no dataset.json. The content is not looked at.
bool is_foreign_data(const std::filesystem::path& path);

/// True when the file begins like a shard of llm.c or of Megatron-LM.
bool is_foreign_shard(const std::filesystem::path& path);

struct ForeignData {
  /// `tokenizer` is "llm.c" or "megatron"; vocab_size is the largest id of the opened split + 1.
  /// The hashes of the other split are 0: it is not read.
  DatasetManifest manifest;
  std::vector<TokenShard> shards;  // of the opened split, every token read once
  /// llm.c: the token that its scripts put before every document, <|endoftext|> of GPT-2 or
  /// <|begin_of_text|> of Llama 3, if one of the shards has it. Megatron's shards have an index.
  DocumentMark mark;
};

/// Files of a folder with `_val` in their names are its validation split; a single file is training
/// text. Throws Error(kBadData) with the file's name: a wrong magic or version, a token type that
/// holds no ids, a size that is not what the header says, an index and a data file that disagree,
/// token types that differ within one folder.
ForeignData open_foreign_data(const std::filesystem::path& path, Split split);

}  // namespace flashshard::data
