// GGUF files are those of llama.cpp's own package, byte for byte (golden/make_gguf.py);
// vocabularies have the tokens, types and order that llama.cpp reads, or are refused with the
// reason.
#include "runtime/exchange/gguf_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/manifest.h"
#include "runtime/exchange/gguf_vocabulary.h"
#include "runtime/exchange/hugging_face_export.h"
#include "runtime/exchange/hugging_face_files.h"
#include "runtime/exchange/hugging_face_import.h"
#include "runtime/exchange/tokenizer_files.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::exchange {
namespace {

using checkpoint::test::read_text;
using checkpoint::test::TemporaryFolder;
using checkpoint::test::write_text;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const std::string kGolden = FLASHSHARD_TEST_DATA "/runtime/exchange/golden/";

class GgufFile : public ::testing::Test {
 protected:
  /// The golden folder as a checkpoint.
  std::string imported(const std::string& name) {
    import_hugging_face({.folder = kGolden + name, .output = run_ / "imported"});
    return run_ / "imported";
  }

  TemporaryFolder run_;
};

class Gguf : public GgufFile, public ::testing::WithParamInterface<std::string> {};

TEST_P(Gguf, FileIsTheOneOfLlamaCppsPackage) {
  // The model's name in a checkpoint is that of the folder that it came from.
  const ExportResult result =
      export_gguf({.checkpoint = imported(GetParam()), .output = run_ / "out"});
  const std::string file = read_text(run_ / "out/model.gguf");
  EXPECT_EQ(file, read_text(kGolden + GetParam() + ".gguf"));
  EXPECT_GT(result.bytes, 2 * static_cast<uint64_t>(result.parameters));
  EXPECT_LT(result.bytes, file.size());
}

TEST_P(Gguf, FileInFp32HoldsTheSameValues) {
  const std::string checkpoint = imported(GetParam());
  const ExportResult half = export_gguf({.checkpoint = checkpoint, .output = run_ / "bf16"});
  const ExportResult exact =
      export_gguf({.checkpoint = checkpoint, .output = run_ / "fp32", .dtype = DType::kFP32});
  EXPECT_EQ(exact.bytes, 4 * static_cast<uint64_t>(exact.parameters));
  const std::string bf16 = read_text(run_ / "bf16/model.gguf");
  const std::string fp32 = read_text(run_ / "fp32/model.gguf");
  EXPECT_EQ(fp32.size() - bf16.size(), exact.bytes - half.bytes);
  HuggingFaceFiles files(checkpoint::posix_file_system(), kGolden + GetParam());
  const auto holds = [&](const std::string& name, bool in_pairs) {
    const HuggingFaceFiles::Source& source = files.tensors().at(name);
    std::vector<float> values(source.entry.bytes() / 2);
    files.read(source, 0, values);
    constexpr size_t kHead = 8;
    constexpr size_t kCols = 32;
    std::vector<float> expected = values;
    for (size_t row = 0; in_pairs && row < values.size() / kCols; ++row) {
      const size_t in_head = row % kHead;
      const size_t from = row - in_head + in_head % 2 * kHead / 2 + in_head / 2;
      std::copy_n(values.begin() + static_cast<long>(from * kCols), kCols,
                  expected.begin() + static_cast<long>(row * kCols));
    }
    const auto bytes = std::as_bytes(std::span(expected));
    return fp32.find(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size())) !=
           std::string::npos;
  };
  EXPECT_TRUE(holds("model.embed_tokens.weight", false));
  EXPECT_TRUE(holds("model.layers.1.mlp.up_proj.weight", false));
  EXPECT_TRUE(holds("model.layers.1.self_attn.k_proj.weight", GetParam() == "llama3"));
  EXPECT_FALSE(holds("model.layers.1.self_attn.k_proj.weight", GetParam() != "llama3"));
}

INSTANTIATE_TEST_SUITE_P(Families, Gguf, ::testing::Values("llama3", "qwen2"),
                         [](const auto& test_case) { return test_case.param; });

TEST_F(GgufFile, OfQwen2WithScaledFrequenciesIsRefused) {
  const std::string folder = run_ / "scaled";
  std::filesystem::copy(kGolden + "qwen2", folder);
  auto config = nlohmann::json::parse(read_text(folder + "/config.json"));
  config["rope_parameters"] =
      nlohmann::json::parse(read_text(kGolden + "llama3/config.json"))["rope_parameters"];
  write_text(folder + "/config.json", config.dump());
  import_hugging_face({.folder = folder, .output = run_ / "imported"});
  try {
    export_gguf({.checkpoint = run_ / "imported", .output = run_ / "out"});
    FAIL() << "exported";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(), HasSubstr("Qwen2 has no rope_scaling"));
  }
  EXPECT_FALSE(std::filesystem::exists(run_ / "out"));
}

data::TokenizerIdentity identity_of(const std::string& kind, const std::string& path) {
  data::TokenizerIdentity identity;
  identity.kind = kind;
  const std::string bytes = read_text(path);
  identity.hash = XXH3_64bits(bytes.data(), bytes.size());
  return identity;
}

TEST_F(GgufFile, AndHuggingFaceConfigSayWhichTokenStandsBeforeEveryText) {
  const std::string step = imported("llama3") + "/checkpoints/step-00000000";
  std::filesystem::create_directory(run_ / "imported/tokenizer");
  const std::string tokenizer = run_ / "imported/tokenizer/tokenizer.json";
  write_text(tokenizer, R"JSON({
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
      "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}],
                         "special_tokens": {"<s>": {"ids": [1]}}},
      "model": {"type": "BPE", "vocab": {"a": 0, "<s>": 1}, "merges": []}})JSON");
  // As if the model had been imported with it, which takes a program that tests do without.
  checkpoint::Manifest manifest =
      checkpoint::decode_manifest(read_text(step + "/manifest.pb"), step);
  manifest.run.environment["tokenizer"] = identity_of("hf", tokenizer).text();
  const checkpoint::ManifestFiles files = checkpoint::encode_manifest(manifest);
  write_text(step + "/manifest.pb", files.pb);
  write_text(step + "/manifest.json", files.json);

  export_gguf({.checkpoint = step, .output = run_ / "gguf"});
  EXPECT_THAT(read_text(run_ / "gguf/model.gguf"), HasSubstr("tokenizer.ggml.bos_token_id"));
  export_hugging_face({.checkpoint = step, .output = run_ / "hf"});
  for (const char* name : {"hf/config.json", "hf/generation_config.json"}) {
    EXPECT_EQ(nlohmann::json::parse(read_text(run_ / name))["bos_token_id"], 1) << name;
  }
  export_hugging_face({.checkpoint = step, .output = run_ / "alone", .tokenizer = false});
  const auto config = nlohmann::json::parse(read_text(run_ / "alone/config.json"));
  EXPECT_TRUE(config["bos_token_id"].is_null());
}

class Vocabulary : public ::testing::Test {
 protected:
  /// The vocabulary of a tokenizer.json, as if it were the checkpoint's.
  GgufVocabulary read(const nlohmann::json& tokenizer) {
    write_text(run_ / "tokenizer.json", tokenizer.dump());
    return read_gguf_vocabulary(identity_of("hf", run_ / "tokenizer.json"), run_.path(), kRows);
  }
  Error refusal(const nlohmann::json& tokenizer) {
    try {
      read(tokenizer);
    } catch (const Error& error) {
      return error;
    }
    return {ExitCode::kDone, ""};
  }
  static nlohmann::json qwen() {
    return nlohmann::json::parse(R"JSON({
      "normalizer": {"type": "NFC"},
      "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
         "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
      "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
      "added_tokens": [{"id": 4, "content": "<|end|>", "special": true},
                       {"id": 5, "content": "<tool>", "special": false}]})JSON");
  }

  static constexpr int64_t kRows = 340;  // of the embedding
  TemporaryFolder run_;
};

TEST_F(Vocabulary, OfQwen2HasTokensByIdWithTheirTypes) {
  const GgufVocabulary vocabulary = read(qwen());
  EXPECT_EQ(vocabulary.model, "gpt2");
  EXPECT_EQ(vocabulary.splitting, "qwen2");
  EXPECT_THAT(vocabulary.tokens, ElementsAre("a", "b", "ab", "", "<|end|>", "<tool>"));
  EXPECT_THAT(vocabulary.types, ElementsAre(1, 1, 1, 5, 3, 4));
  EXPECT_THAT(vocabulary.merges, ElementsAre("a b"));
  nlohmann::json pairs = qwen();
  pairs["model"]["merges"] = nlohmann::json::parse(R"([["a", "b"]])");
  EXPECT_THAT(read(pairs).merges, ElementsAre("a b"));
}

TEST_F(Vocabulary, OfLlama3AndGpt2IsKnownByItsSplitting) {
  nlohmann::json tokenizer = qwen();
  auto& regex = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
  std::string expression = regex;
  expression.replace(expression.find("\\p{N}| ?"), 6, "\\p{N}{1,3}|");
  regex = expression;
  EXPECT_EQ(read(tokenizer).splitting, "llama-bpe");
  tokenizer["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  EXPECT_EQ(read(tokenizer).splitting, "gpt-2");
}

TEST_F(Vocabulary, ThatLlamaCppDoesNotHaveIsRefusedWithTheReason) {
  const auto refused = [&](const std::string& patch, ExitCode code, const std::string& why) {
    nlohmann::json tokenizer = qwen();
    tokenizer.merge_patch(nlohmann::json::parse(patch));
    const Error error = refusal(tokenizer);
    EXPECT_EQ(error.code(), code) << patch;
    EXPECT_THAT(error.what(), AllOf(HasSubstr(why), HasSubstr("tokenizer.json"))) << patch;
  };
  refused(R"({"model": {"type": "Unigram"}})", ExitCode::kUsage, "not byte-pair encoding");
  refused(R"({"normalizer": {"type": "Lowercase"}})", ExitCode::kUsage, "normalizer is not NFC");
  refused(R"({"pre_tokenizer": null})", ExitCode::kUsage, "it is not byte-level");
  refused(R"({"pre_tokenizer": {"type": "Metaspace"}})", ExitCode::kUsage,
          "its pre-tokenizer is Metaspace");
  refused(R"({"pre_tokenizer": {"type": "ByteLevel", "pretokenizers": null}})", ExitCode::kUsage,
          "adds a space before a text");
  refused(R"({"pre_tokenizer": {"type": "ByteLevel", "pretokenizers": null,
              "add_prefix_space": false, "use_regex": false}})",
          ExitCode::kUsage, "splitting expression");
  refused(R"({"model": null})", ExitCode::kBadData, "it has no model");
  refused(R"({"model": {"vocab": {"c": -1}}})", ExitCode::kBadData, "no number of a token");
  refused(R"({"added_tokens": [{"id": "7", "content": "x"}]})", ExitCode::kBadData,
          "no number of a token");
  refused(R"({"model": {"merges": [3]}})", ExitCode::kBadData, "bad tokenizer file");
  refused(R"({"added_tokens": [{"id": 7}]})", ExitCode::kBadData, "bad tokenizer file");
}

TEST_F(Vocabulary, SaysWhichTokenStandsBeforeEveryText) {
  nlohmann::json tokenizer = qwen();
  EXPECT_EQ(read(tokenizer).beginning_of_text, data::kNoToken);
  const auto keys = [](const GgufVocabulary& vocabulary) {
    GgufHeader header;
    add_vocabulary(vocabulary, /*end_of_document=*/5, /*rows=*/6, header);
    return header.bytes();
  };
  GgufHeader with, without;
  with.add_flag("tokenizer.ggml.add_bos_token", true);
  without.add_flag("tokenizer.ggml.add_bos_token", false);
  const auto pair_in = [](const GgufHeader& header) {
    const std::string bytes = header.bytes();
    const std::string key = "tokenizer.ggml.add_bos_token";
    return bytes.substr(bytes.find(key), key.size() + 5);  // type and value
  };
  EXPECT_THAT(keys(read(tokenizer)),
              AllOf(HasSubstr(pair_in(without)), Not(HasSubstr("tokenizer.ggml.bos_token_id"))));

  const auto processing = nlohmann::json::parse(R"JSON({
      "type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [4], "tokens": ["<|end|>"]}}})JSON");
  tokenizer["post_processor"] = processing;
  EXPECT_EQ(read(tokenizer).beginning_of_text, 4);
  tokenizer["post_processor"] = {
      {"type", "Sequence"},
      {"processors", nlohmann::json::array({{{"type", "ByteLevel"}}, processing})}};
  EXPECT_EQ(read(tokenizer).beginning_of_text, 4);
  EXPECT_THAT(keys(read(tokenizer)),
              AllOf(HasSubstr(pair_in(with)), HasSubstr("tokenizer.ggml.bos_token_id")));

  const auto changed = [&](const std::string& at, const nlohmann::json& value) {
    tokenizer["post_processor"] = processing;
    tokenizer["post_processor"][nlohmann::json::json_pointer(at)] = value;
    return tokenizer;
  };
  EXPECT_EQ(read(changed("/single/0", processing["single"][1])).beginning_of_text, data::kNoToken);
  EXPECT_EQ(read(changed("/type", "ByteLevel")).beginning_of_text, data::kNoToken);
  EXPECT_EQ(read(changed("/special_tokens/<|end|>/ids", {4, 5})).beginning_of_text, data::kNoToken);
  for (const auto& id :
       nlohmann::json::parse(R"([-1, "4", 6, 4294967300, 18446744073709551615])")) {
    EXPECT_EQ(refusal(changed("/special_tokens/<|end|>/ids/0", id)).code(), ExitCode::kBadData)
        << id;
  }
  EXPECT_EQ(refusal(changed("/special_tokens", nlohmann::json::object())).code(),
            ExitCode::kBadData);
}

TEST_F(Vocabulary, WithATokenBeyondTheEmbeddingIsRefusedBeforeItTakesMemory) {
  nlohmann::json tokenizer = qwen();
  tokenizer["model"]["vocab"]["c"] = kRows - 1;
  EXPECT_EQ(read(tokenizer).tokens.size(), static_cast<size_t>(kRows));
  for (const uint64_t id : {uint64_t{kRows}, uint64_t{1} << 23, uint64_t{1} << 62, ~uint64_t{0}}) {
    tokenizer["model"]["vocab"]["c"] = id;
    const Error error = refusal(tokenizer);
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("the tokenizer has a token"), HasSubstr("the model 340 tokens")));
  }
}

TEST_F(Vocabulary, ThatSplitsTextOtherwiseThanItsNamesakeIsRefused) {
  const auto refused = [&](const std::string& at, const nlohmann::json& value,
                           const std::string& why) {
    nlohmann::json tokenizer = qwen();
    tokenizer["pre_tokenizer"]["pretokenizers"][nlohmann::json::json_pointer(at)] = value;
    const Error error = refusal(tokenizer);
    EXPECT_EQ(error.code(), ExitCode::kUsage) << at;
    EXPECT_THAT(error.what(), AllOf(HasSubstr(why), HasSubstr("tokenizer.json"))) << at;
  };
  refused("/0/pattern/Regex", "\\d+", "its splitting expression is not one of");
  refused("/0/pattern", {{"String", " "}}, "its splitting expression is not one of");
  refused("/0/behavior", "Removed", "does not cut out what it matches");
  refused("/0/invert", true, "does not cut out what it matches");
  refused("/1/use_regex", true, "it splits a text twice");
  refused("/2", qwen()["pre_tokenizer"]["pretokenizers"][0], "it splits a text twice");
  // An expression of somebody else beside one that is known.
  nlohmann::json other = qwen()["pre_tokenizer"]["pretokenizers"][0];
  other["pattern"]["Regex"] = "\\d";
  refused("/2", other, "its splitting expression is not one of");
}

TEST_F(Vocabulary, OfSentencePieceHasPiecesScoresAndBytes) {
  const std::string folder = FLASHSHARD_TEST_DATA "/runtime/data/golden";
  const GgufVocabulary vocabulary = read_gguf_vocabulary(
      identity_of("sentencepiece", folder + "/tokenizer.model"), folder, kRows);
  EXPECT_EQ(vocabulary.model, "llama");
  ASSERT_EQ(vocabulary.tokens.size(), 340u);
  EXPECT_EQ(vocabulary.tokens[0], "<unk>");
  EXPECT_EQ(vocabulary.types[0], 2);
  EXPECT_EQ(vocabulary.types[2], 3);
  EXPECT_EQ(vocabulary.tokens[3], "<0x00>");
  EXPECT_EQ(vocabulary.types[3], 6);
  EXPECT_EQ(vocabulary.scores.size(), 340u);
  EXPECT_TRUE(vocabulary.add_space_prefix);
  EXPECT_THAT(vocabulary.warnings, ElementsAre(HasSubstr("white space")));

  write_text(run_ / "tokenizer.model", "no model");
  EXPECT_THROW(read_gguf_vocabulary(identity_of("sentencepiece", run_ / "tokenizer.model"),
                                    run_.path(), kRows),
               Error);
}

TEST_F(Vocabulary, OfBytesHasEveryByteAndIsFilledUpToTheEmbedding) {
  GgufVocabulary vocabulary = read_gguf_vocabulary(data::TokenizerIdentity(), "", kRows);
  EXPECT_EQ(vocabulary.tokens.size(), 256u);
  EXPECT_EQ(vocabulary.tokens[' '], "\u0120");
  EXPECT_EQ(vocabulary.types[0], 3);
  EXPECT_THAT(vocabulary.merges, IsEmpty());
  GgufHeader header;
  add_vocabulary(vocabulary, /*end_of_document=*/0, /*rows=*/300, header);
  EXPECT_THAT(header.bytes(),
              AllOf(HasSubstr("[PAD256]"), HasSubstr("[PAD299]"),
                    HasSubstr("tokenizer.ggml.merges"), HasSubstr("tokenizer.ggml.eos_token_id")));
  EXPECT_THROW(add_vocabulary(vocabulary, 0, 255, header), Error);
}

TEST_F(Vocabulary, OfNobodyKnowsWhatIsRefused) {
  data::TokenizerIdentity identity;
  identity.kind = "megatron";
  EXPECT_THROW(read_gguf_vocabulary(identity, "", kRows), Error);
}

}  // namespace
}  // namespace flashshard::exchange
