// A run's checkpoint leaves as a Hugging Face folder and comes back with the same bits: weights
// through bf16, weights and corrections through fp32.
#include "runtime/exchange/hugging_face_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "runtime/checkpoint/folder.h"
#include "runtime/exchange/hugging_face_files.h"
#include "runtime/exchange/hugging_face_import.h"
#include "runtime/exchange/tokenizer_files.h"
#include "runtime/trained_model.h"
#include "tests/runtime/checkpoint/faulty_file_system.h"
#include "tests/runtime/runs.h"

namespace flashshard::exchange {
namespace {

using checkpoint::StateClass;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// Runs of few steps: enough for weights that bf16 does not hold.
class Exported : public test::Runs {
 protected:
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  void train(const std::string& name, std::vector<std::string> overrides = {}, int world_size = 2) {
    overrides.insert(overrides.end(),
                     {"train.steps=3", "schedule.warmup_steps=1", "train.validation_sequences=1"});
    ASSERT_EQ(run(world_size, config(name, overrides)), ExitCode::kDone);
  }
  ExportResult export_to(const std::string& run, const std::string& output,
                         DType dtype = DType::kBF16, uint64_t shard_bytes = 1 << 30) {
    return export_hugging_face({.checkpoint = path(run),
                                .output = path(output),
                                .dtype = dtype,
                                .shard_bytes = shard_bytes});
  }
  ImportResult import_from(const std::string& exported, const std::string& output,
                           DType dtype = DType::kBF16, int bits = 24) {
    return import_hugging_face({.folder = path(exported),
                                .output = path(output),
                                .dtype = dtype,
                                .master_weight_bits = bits});
  }
  checkpoint::LogicalHash hash_of(const std::string& name) const {
    return checkpoint::hash(path(name));
  }
  std::vector<float> logits(const std::string& checkpoint) const {
    const auto alone = std::move(make_thread_communicators(1).front());
    TrainedModel model(path(checkpoint), *alone, TrainedModel::Use::kText);
    const std::vector<int32_t> tokens = {'a', 'n', 'd', ' ', 't', 'h'};
    return model.model().next_token_logits(tokens);
  }
  std::vector<std::string> names_in(const std::string& name) const {
    return checkpoint::list(checkpoint::posix_file_system(), path(name));
  }
};

const std::vector<std::string> kLlama3 = {
    "model.tied_embeddings=false", "model.rope_scaling=LLAMA3", "model.rope_original_positions=16",
    "model.rope_theta=500000", "model.head_dim=8"};
const std::vector<std::string> kQwen2 = {"model.qkv_bias=true", "model.rope_theta=1000000",
                                         "model.norm_epsilon=1e-6"};

TEST_F(Exported, ModelsOfBothFamiliesComeBackWithTheirHashesAndLogits) {
  for (const auto& family : {kLlama3, kQwen2}) {
    const std::string name = family == kLlama3 ? "llama" : "qwen";
    train(name, family, /*world_size=*/3);
    const auto trained = hash_of(name);

    export_to(name, name + "-bf16");
    const auto weights = import_from(name + "-bf16", name + "-from-bf16");
    EXPECT_EQ(weights.hash.of(StateClass::kWeights), trained.of(StateClass::kWeights));
    EXPECT_EQ(logits(name + "-from-bf16"), logits(name));
    EXPECT_EQ(weights.tokenizer, "byte");

    const ExportResult exact = export_to(name, name + "-fp32", DType::kFP32);
    EXPECT_EQ(exact.bytes, 4 * static_cast<uint64_t>(exact.parameters));
    const auto masters = import_from(name + "-fp32", name + "-from-fp32");
    EXPECT_EQ(masters.hash.of(StateClass::kWeights), trained.of(StateClass::kWeights));
    EXPECT_EQ(masters.hash.of(StateClass::kCorrection), trained.of(StateClass::kCorrection));
    EXPECT_NE(weights.hash.of(StateClass::kCorrection), trained.of(StateClass::kCorrection));
    EXPECT_EQ(hash_of(name + "-from-fp32"), masters.hash);
    EXPECT_EQ(logits(name + "-from-fp32"), logits(name));
  }
}

TEST_F(Exported, ModelsOfACheckpointUnderZstdAreThoseOfAPlainOne) {
  train("plain");
  train("zstd", {"checkpoint.zstd_level=1"});
  EXPECT_EQ(hash_of("zstd"), hash_of("plain"));
  EXPECT_THAT(names_in("zstd/checkpoints/step-00000003"),
              ::testing::Contains("weights-00001.safetensors.zst"));
  for (const DType dtype : {DType::kBF16, DType::kFP32}) {
    const std::string suffix = dtype == DType::kBF16 ? "-bf16" : "-fp32";
    export_to("plain", "of-plain" + suffix, dtype);
    export_to("zstd", "of-zstd" + suffix, dtype);
    const auto weights = [&](const std::string& name) {
      return checkpoint::read_file(checkpoint::posix_file_system(),
                                   path(name + suffix + "/model.safetensors"), 1 << 30);
    };
    EXPECT_EQ(weights("of-zstd"), weights("of-plain"));
  }
  // The same run goes on at another number of ranks, and saves plain files.
  ASSERT_EQ(run(1, config("zstd", {"train.steps=4", "schedule.warmup_steps=1",
                                   "train.validation_sequences=1"})),
            ExitCode::kDone);
  EXPECT_THAT(names_in("zstd/checkpoints/step-00000004"),
              ::testing::Contains("weights-00000.safetensors"));
}

TEST_F(Exported, MastersOfEveryFormatComeBackExactly) {
  train("all32", {"optimizer.master_weight_bits=32"});
  export_to("all32", "all32-fp32", DType::kFP32);
  const auto all32 = import_from("all32-fp32", "all32-back", DType::kBF16, 32).hash;
  EXPECT_EQ(all32.of(StateClass::kCorrection), hash_of("all32").of(StateClass::kCorrection));

  train("none", {"optimizer.master_weight_bits=0"});
  export_to("none", "none-fp32", DType::kFP32);
  const auto none = import_from("none-fp32", "none-back", DType::kBF16, 0).hash;
  EXPECT_EQ(none.of(StateClass::kWeights), hash_of("none").of(StateClass::kWeights));
  EXPECT_EQ(none.of(StateClass::kCorrection), hash_of("none").of(StateClass::kCorrection));

  const std::vector<std::string> fp32 = {"model.dtype=FP32", "optimizer.state=FP32",
                                         "optimizer.master_weight_bits=32"};
  train("fp32", fp32);
  export_to("fp32", "fp32-fp32", DType::kFP32);
  EXPECT_EQ(import_from("fp32-fp32", "fp32-back", DType::kFP32).hash.of(StateClass::kWeights),
            hash_of("fp32").of(StateClass::kWeights));
  EXPECT_EQ(logits("fp32-back"), logits("fp32"));

  // FlashOptim's corrections have no counterpart in an import; their values lie within half a step
  // of the weights.
  train("v1", {"optimizer.state_format=FLASHOPTIM_V1"});
  export_to("v1", "v1-bf16");
  EXPECT_EQ(import_from("v1-bf16", "v1-back").hash.of(StateClass::kWeights),
            hash_of("v1").of(StateClass::kWeights));
  export_to("v1", "v1-fp32", DType::kFP32);
  HuggingFaceFiles weights(checkpoint::posix_file_system(), path("v1-bf16"));
  HuggingFaceFiles masters(checkpoint::posix_file_system(), path("v1-fp32"));
  size_t corrected = 0;
  for (const auto& [name, source] : weights.tensors()) {
    std::vector<float> weight(source.entry.bytes() / 2);
    std::vector<float> master(weight.size());
    weights.read(source, 0, weight);
    masters.read(masters.tensors().at(name), 0, master);
    for (size_t i = 0; i < weight.size(); ++i) {
      ASSERT_LE(std::abs(master[i] - weight[i]), std::abs(weight[i]) / 256) << name;
      corrected += master[i] != weight[i];
    }
  }
  EXPECT_GT(corrected, 20000u);
}

TEST_F(Exported, WeightsOfAnFp32ModelAreRoundedToNearestInBf16) {
  train("fp32", {"model.dtype=FP32", "optimizer.state=FP32", "optimizer.master_weight_bits=32"});
  export_to("fp32", "exact", DType::kFP32);
  export_to("fp32", "rounded");
  // From fp32 values the import rounds too.
  EXPECT_EQ(import_from("rounded", "a").hash.of(StateClass::kWeights),
            import_from("exact", "b", DType::kBF16, 0).hash.of(StateClass::kWeights));
}

TEST_F(Exported, FilesAreSplitWhereTheyWouldBeTooLargeAndNameTheirTensors) {
  train("a");
  const ExportResult whole = export_to("a", "whole");
  EXPECT_EQ(whole.files, 1);
  EXPECT_THAT(names_in("whole"),
              ElementsAre("config.json", "generation_config.json", "model.safetensors",
                          "tokenizer.json", "tokenizer_config.json"));
  const ExportResult split = export_to("a", "split", DType::kBF16, 12000);
  EXPECT_GT(split.files, 2);
  EXPECT_EQ(split.bytes, whole.bytes);
  const auto index = nlohmann::json::parse(checkpoint::read_file(
      checkpoint::posix_file_system(), path("split") + "/model.safetensors.index.json", 1 << 20));
  EXPECT_EQ(index["metadata"]["total_size"], split.bytes);
  EXPECT_EQ(index["weight_map"].size(), static_cast<size_t>(split.tensors));
  const HuggingFaceFiles files(checkpoint::posix_file_system(), path("split"));
  uint64_t bytes = 0;
  for (const auto& [name, source] : files.tensors()) bytes += source.entry.bytes();
  EXPECT_EQ(bytes, split.bytes);
  EXPECT_TRUE(files.tensors().contains("model.layers.1.self_attn.k_proj.weight"));
  EXPECT_EQ(import_from("split", "split-back").hash, import_from("whole", "whole-back").hash);
}

TEST_F(Exported, ModelsStartARunAtAnyNumberOfRanks) {
  train("a");
  export_to("a", "exact", DType::kFP32);
  import_from("exact", "imported");
  const auto trained = hash_of("a");
  for (const int world_size : {1, 3}) {
    const std::string name = "tuned" + std::to_string(world_size);
    ASSERT_EQ(
        run(world_size, config(name, {"model.initialize_from=" + path("imported"), "train.steps=1",
                                      "optimizer.learning_rate=1e-30", "schedule.warmup_steps=0",
                                      "optimizer.rounding=NEAREST"})),
        ExitCode::kDone);
    EXPECT_EQ(hash_of(name).of(StateClass::kWeights), trained.of(StateClass::kWeights));
    EXPECT_EQ(hash_of(name).of(StateClass::kCorrection), trained.of(StateClass::kCorrection));
  }
}

TEST_F(Exported, ModelsOfADamagedCheckpointAreNotWritten) {
  train("a");
  const std::string file = path("a") + "/checkpoints/step-00000003/state-00001.safetensors";
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  const auto header = checkpoint::read_safetensors_header(
      checkpoint::InputFile(checkpoint::posix_file_system(), file));
  const auto* correction = header.find("model.embed_tokens.weight.correction");
  ASSERT_NE(correction, nullptr);
  stream.seekg(static_cast<std::streamoff>(header.data_offset + correction->begin));
  const auto byte = static_cast<char>(stream.get() ^ 1);
  stream.seekp(static_cast<std::streamoff>(header.data_offset + correction->begin));
  stream.put(byte);
  stream.close();
  EXPECT_NO_THROW(export_to("a", "weights"));
  try {
    export_to("a", "exact", DType::kFP32);
    FAIL() << "exported";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
    EXPECT_THAT(error.what(), HasSubstr("`flashshard verify` lists the damage"));
  }
  EXPECT_FALSE(std::filesystem::exists(path("exact")));
}

TEST_F(Exported, FoldersNeverReplaceAnythingAndAreWholeOrNotThereWhateverCallFails) {
  train("a");
  export_to("a", "whole");
  EXPECT_THROW(export_to("a", "whole"), Error);
  const auto before = names_in("");
  const std::set<std::string> changing = {"create", "write",          "sync",          "close",
                                          "rename", "make_directory", "sync_directory"};
  bool done = false;
  for (int at = 0; !done; ++at) {
    int calls = 0;
    checkpoint::test::FaultyFileSystem full([&](const std::string& call, const std::string&) {
      return changing.contains(call) && calls++ == at ? ENOSPC : 0;
    });
    ExitCode code = ExitCode::kDone;
    try {
      export_hugging_face(
          {.checkpoint = path("a"), .output = path("faulty"), .file_system = &full});
    } catch (const Error& error) {
      code = error.code();
    }
    done = calls <= at;
    EXPECT_EQ(code, done ? ExitCode::kDone : ExitCode::kOutOfSpace) << at;
    if (std::filesystem::exists(path("faulty"))) {
      EXPECT_EQ(names_in("faulty"), names_in("whole"));
    }
    std::filesystem::remove_all(path("faulty"));
    EXPECT_EQ(names_in(""), before) << at;
    ASSERT_LT(at, 300);
  }
}

TEST_F(Exported, TokenizersOfSentencePieceAreCopiedAndAnotherFileIsRefused) {
  const std::string model = FLASHSHARD_TEST_DATA "/runtime/data/golden/tokenizer.model";
  std::filesystem::create_directories(folder_ / "sp");
  std::filesystem::copy(model, folder_ / "sp" / "tokenizer.model");
  const auto identity = identify_tokenizer(folder_ / "sp");
  ASSERT_TRUE(identity);
  EXPECT_EQ(identity->kind, "sentencepiece");
  OutputFolder output(checkpoint::posix_file_system(), path("out"));
  EXPECT_THAT(write_tokenizer_files(*identity, folder_ / "sp", output), IsEmpty());
  EXPECT_EQ(
      checkpoint::list(checkpoint::posix_file_system(), output.path()),
      (std::vector<std::string>{"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}));
  const auto settings = nlohmann::json::parse(checkpoint::read_file(
      checkpoint::posix_file_system(), output.path() + "/tokenizer_config.json", 10000));
  EXPECT_EQ(settings["tokenizer_class"], "PreTrainedTokenizerFast");
  EXPECT_EQ(settings["eos_token"], "</s>");
  // It comes back as what it was, not as the tokenizer.json beside it.
  EXPECT_EQ(identify_tokenizer(output.path()), identity);
  data::TokenizerIdentity other = *identity;
  other.hash += 1;
  try {
    write_tokenizer_files(other, folder_ / "sp", output);
    FAIL() << "copied";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
  }
  other.kind = "megatron";
  EXPECT_THROW(write_tokenizer_files(other, folder_ / "sp", output), Error);
}

TEST(ByteTokenizerJson, HasEveryByteAtItsOwnId) {
  const auto json = nlohmann::json::parse(byte_tokenizer_json());
  const auto& vocabulary = json["model"]["vocab"];
  EXPECT_EQ(vocabulary.size(), 256u);
  EXPECT_EQ(vocabulary["a"], 'a');
  EXPECT_EQ(vocabulary["\u0120"], ' ');
  EXPECT_EQ(vocabulary["\u0100"], 0);
  EXPECT_EQ(vocabulary["\u010a"], '\n');
  EXPECT_EQ(vocabulary["\u00ff"], 255);
  EXPECT_EQ(vocabulary["\u0143"], 0xad);
}

}  // namespace
}  // namespace flashshard::exchange
