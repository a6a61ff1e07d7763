// Folders that transformers wrote (golden/make_models.py) become checkpoints with transformers'
// logits; folders that do not fit are refused by file, tensor and field.
#include "runtime/exchange/hugging_face_import.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "comm/threads.h"
#include "kernels/numerics/fp16.h"
#include "runtime/checkpoint/reshard.h"
#include "runtime/checkpoint/verify.h"
#include "runtime/exchange/hugging_face_export.h"
#include "runtime/exchange/hugging_face_files.h"
#include "runtime/run_checkpoint.h"
#include "runtime/trained_model.h"
#include "tests/runtime/checkpoint/faulty_file_system.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::exchange {
namespace {

using checkpoint::StateClass;
using checkpoint::test::FaultyFileSystem;
using checkpoint::test::read_text;
using checkpoint::test::TemporaryFolder;
using checkpoint::test::write_text;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// The transformers model of make_llama.py's logits: fp32 from fp32 weights.
struct GoldenLogits {
  std::vector<int32_t> inputs;
  std::vector<float> logits;  // of the first sequence, after every prefix
  int64_t vocabulary = 0;
  double error_of_torch_bf16 = 0;
};
GoldenLogits golden_logits(const std::string& name) {
  const std::string stem = std::string(FLASHSHARD_TEST_DATA) + "/runtime/model/golden/" + name;
  const auto facts = nlohmann::json::parse(read_text(stem + ".json"));
  GoldenLogits golden;
  golden.vocabulary = facts["options"]["vocab_size"];
  golden.error_of_torch_bf16 = facts["error_of_torch_bf16_logits"];
  const auto inputs = facts["inputs"].get<std::vector<int32_t>>();
  const auto length = facts["sequence_length"].get<size_t>();
  golden.inputs.assign(inputs.begin(), inputs.begin() + static_cast<std::ptrdiff_t>(length));
  const std::string bytes = read_text(stem + ".bin");
  golden.logits.resize(length * static_cast<size_t>(golden.vocabulary));
  const size_t size = golden.logits.size() * sizeof(float);  // they stand last
  std::memcpy(golden.logits.data(), bytes.data() + bytes.size() - size, size);
  return golden;
}

double error_of_logits(const std::string& checkpoint, const GoldenLogits& golden) {
  const auto alone = std::move(make_thread_communicators(1).front());
  TrainedModel model(checkpoint, *alone, TrainedModel::Use::kText);
  double difference = 0, norm = 0;
  for (size_t length = 1; length <= golden.inputs.size(); ++length) {
    const auto row = model.model().next_token_logits({golden.inputs.data(), length});
    for (size_t i = 0; i < row.size(); ++i) {
      const double expected = golden.logits[(length - 1) * row.size() + i];
      difference += std::pow(double{row[i]} - expected, 2);
      norm += std::pow(expected, 2);
    }
  }
  return std::sqrt(difference / norm);
}

class ImportedFolder : public ::testing::Test {
 protected:
  /// A copy of a golden folder that a test may change.
  std::string copy_of(const std::string& name) {
    const std::string folder = run_ / ("copy" + std::to_string(copies_++));
    std::filesystem::copy(FLASHSHARD_TEST_DATA "/runtime/exchange/golden/" + name, folder);
    return folder;
  }
  ImportResult import_from(const std::string& folder, const std::string& name,
                           DType dtype = DType::kBF16, int bits = 24) {
    return import_hugging_face(
        {.folder = folder, .output = run_ / name, .dtype = dtype, .master_weight_bits = bits});
  }
  Error failure(const std::string& folder,
                checkpoint::FileSystem& file_system = checkpoint::posix_file_system()) {
    try {
      import_hugging_face(
          {.folder = folder, .output = run_ / "refused", .file_system = &file_system});
    } catch (const Error& error) {
      return error;
    }
    return {ExitCode::kDone, ""};
  }
  static void patch_config(const std::string& folder, const std::string& patch) {
    auto json = nlohmann::json::parse(read_text(folder + "/config.json"));
    json.merge_patch(nlohmann::json::parse(patch));
    write_text(folder + "/config.json", json.dump());
  }

  struct StoredTensor {
    std::string name;
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  static std::vector<StoredTensor> tensors_in(const std::string& folder) {
    HuggingFaceFiles files(checkpoint::posix_file_system(), folder);
    std::vector<StoredTensor> tensors;
    for (const auto& [name, source] : files.tensors()) {
      StoredTensor tensor{name, source.entry.shape, {}};
      tensor.values.resize(source.entry.bytes() / 2);
      files.read(source, 0, tensor.values);
      tensors.push_back(std::move(tensor));
    }
    return tensors;
  }
  /// Writes tensors [first, last) as F32, or as F16, which holds the golden values exactly.
  static void write_tensors(const std::string& path, std::span<const StoredTensor> tensors,
                            const std::string& dtype) {
    checkpoint::SafetensorsHeader header;
    std::string data;
    for (const StoredTensor& tensor : tensors) {
      header.entries.push_back({tensor.name, dtype, tensor.shape});
      for (const float value : tensor.values) {
        const auto bits = std::bit_cast<uint32_t>(value);
        uint32_t stored = bits;
        if (dtype == "F16") {
          const uint32_t exponent = bits >> 23 & 0xff;
          stored = bits >> 31 << 15 |
                   (exponent == 0 ? 0 : (exponent - 112) << 10 | (bits >> 13 & 0x3ff));
        }
        data.append(reinterpret_cast<const char*>(&stored), dtype == "F16" ? 2 : 4);
      }
    }
    const std::string head = checkpoint::lay_out_safetensors(header);
    write_text(path, head + data);
  }

  TemporaryFolder run_;
  int copies_ = 0;
};

class ImportedModel : public ImportedFolder, public ::testing::WithParamInterface<std::string> {};

TEST_P(ImportedModel, HasTheLogitsOfTransformersInFp32) {
  const ImportResult result = import_from(copy_of(GetParam()), "model", DType::kFP32);
  EXPECT_EQ(result.path, run_ / "model/checkpoints/step-00000000");
  EXPECT_THAT(result.warnings, ElementsAre("the folder has no tokenizer"));
  EXPECT_THAT(checkpoint::verify(run_ / "model").findings, IsEmpty());
  EXPECT_LT(error_of_logits(run_ / "model", golden_logits(GetParam())), 1e-5);
}

TEST_P(ImportedModel, HasTheLogitsOfTransformersWithinBf16Rounding) {
  import_from(copy_of(GetParam()), "model");
  const GoldenLogits golden = golden_logits(GetParam());
  EXPECT_LT(error_of_logits(run_ / "model", golden), 1.5 * golden.error_of_torch_bf16);
}

TEST_P(ImportedModel, IsExportedAsTheTensorsThatTransformersWrote) {
  const std::string folder = copy_of(GetParam());
  import_from(folder, "model");
  export_hugging_face({.checkpoint = run_ / "model", .output = run_ / "exported"});
  const auto wrote = tensors_in(folder);
  const auto exported = tensors_in(run_ / "exported");
  ASSERT_EQ(exported.size(), wrote.size());
  for (size_t i = 0; i < wrote.size(); ++i) {
    EXPECT_EQ(exported[i].name, wrote[i].name);
    EXPECT_EQ(exported[i].shape, wrote[i].shape);
    EXPECT_EQ(exported[i].values, wrote[i].values) << wrote[i].name;
  }
}

TEST_P(ImportedModel, IsTheSameFromF16AndF32AndFromSplitFiles) {
  const std::string folder = copy_of(GetParam());
  const auto expected = import_from(folder, "bf16").hash;
  const auto tensors = tensors_in(folder);
  for (const char* dtype : {"F16", "F32"}) {
    write_tensors(folder + "/model.safetensors", tensors, dtype);
    EXPECT_EQ(import_from(folder, dtype).hash, expected) << dtype;
  }

  std::filesystem::remove(folder + "/model.safetensors");
  nlohmann::json index;
  const std::span all(tensors);
  for (const bool second : {false, true}) {
    const auto part = second ? all.subspan(5) : all.first(5);
    const std::string file =
        second ? "model-00002-of-00002.safetensors" : "model-00001-of-00002.safetensors";
    write_tensors(folder + "/" + file, part, second ? "F16" : "F32");
    for (const StoredTensor& tensor : part) index["weight_map"][tensor.name] = file;
  }
  write_text(folder + "/model.safetensors.index.json", index.dump());
  EXPECT_EQ(import_from(folder, "split").hash, expected);
}

INSTANTIATE_TEST_SUITE_P(Families, ImportedModel, ::testing::Values("llama3", "qwen2"),
                         [](const auto& test_case) { return test_case.param; });

TEST_F(ImportedFolder, KeepsWhatBf16CannotHoldInTheCorrection) {
  const std::string folder = copy_of("llama3");
  auto tensors = tensors_in(folder);
  const auto before = import_from(folder, "before").hash;
  tensors[0].values[0] *= 1.001f;  // below half a step of bf16
  write_tensors(folder + "/model.safetensors", tensors, "F32");
  for (const int bits : {24, 32}) {
    const auto after = import_from(folder, "after" + std::to_string(bits), DType::kBF16, bits).hash;
    EXPECT_EQ(after.of(StateClass::kWeights), before.of(StateClass::kWeights));
    EXPECT_NE(after.of(StateClass::kCorrection), before.of(StateClass::kCorrection));
  }
  EXPECT_EQ(import_from(folder, "weights", DType::kBF16, 0).hash.of(StateClass::kWeights),
            before.of(StateClass::kWeights));
}

TEST_F(ImportedFolder, MayRepeatTheTiedOutputLayerAndOldRotaryFrequencies) {
  const std::string folder = copy_of("qwen2");
  auto tensors = tensors_in(folder);
  const auto expected = import_from(folder, "plain").hash;
  for (const StoredTensor& tensor : tensors_in(folder)) {
    if (tensor.name != "model.embed_tokens.weight") continue;
    tensors.push_back({"lm_head.weight", tensor.shape, tensor.values});
  }
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", {1}, {1.0f}});
  write_tensors(folder + "/model.safetensors", tensors, "F32");
  EXPECT_EQ(import_from(folder, "repeated").hash, expected);

  tensors[tensors.size() - 2].values[7] += 1;
  write_tensors(folder + "/model.safetensors", tensors, "F32");
  const Error error = failure(folder);
  EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
  EXPECT_THAT(error.what(),
              AllOf(HasSubstr("\"lm_head.weight\""), HasSubstr("is not the embedding")));
}

TEST_F(ImportedFolder, IsRefusedByTensorAndFile) {
  struct Case {
    std::function<void(std::vector<StoredTensor>&)> change;
    std::string says;
  };
  for (const Case& bad :
       std::vector<Case>{{[](auto& tensors) { tensors.erase(tensors.begin() + 3); }, "is missing"},
                         {[](auto& tensors) { tensors[1].name = "other.weight"; }, "is missing"},
                         {[](auto& tensors) {
                            tensors.push_back({"extra.weight", {1}, {0}});
                          },
                          "tensor \"extra.weight\": the model has no such tensor"},
                         {[](auto& tensors) {
                            tensors[0].shape = {tensors[0].shape[1], tensors[0].shape[0]};
                          },
                          "its shape is [32, 61], config.json asks for [61, 32]"},
                         {[](auto& tensors) { tensors[0].values[40] = NAN; },
                          "tensor \"lm_head.weight\": row 1 has a value that is not finite"},
                         {[](auto& tensors) { tensors[1].values.back() = INFINITY; },
                          "row 60 has a value that is not finite"}}) {
    const std::string folder = copy_of("llama3");
    auto tensors = tensors_in(folder);
    bad.change(tensors);
    write_tensors(folder + "/model.safetensors", tensors, "F32");
    const Error error = failure(folder);
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint) << bad.says;
    EXPECT_THAT(error.what(), AllOf(HasSubstr(bad.says), HasSubstr("model.safetensors")));
    EXPECT_FALSE(std::filesystem::exists(run_ / "refused"));
  }
}

TEST_F(ImportedFolder, OfAnotherShapeThanARunMayHaveIsRefusedByItsField) {
  const std::string folder = copy_of("llama3");
  patch_config(folder, R"({"num_key_value_heads": 3})");
  const Error error = failure(folder);
  EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("model.kv_heads"), HasSubstr("config.json")));
}

TEST_F(ImportedFolder, WithAnIndexThatDoesNotFitItsFilesIsRefused) {
  const std::string folder = copy_of("llama3");
  const auto refused = [&](const std::string& index, const std::string& says) {
    write_text(folder + "/model.safetensors.index.json", index);
    const Error error = failure(folder);
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
    EXPECT_THAT(error.what(), HasSubstr(says));
  };
  refused("{", "it has no object weight_map");
  refused(R"({"weight_map": {"a": "../other.safetensors"}})", "no name of a safetensors file");
  refused(R"({"weight_map": {"a": 3}})", "no name of a safetensors file");
  refused(R"({"weight_map": {"a": "model.bin"}})", "no name of a safetensors file");
  refused(R"({"weight_map": {"a": "model.safetensors"}})",
          "tensor \"a\" is not in \"model.safetensors\"");
  refused(R"({"weight_map": {"lm_head.weight": "model.safetensors"}})", "is not in the index");
  std::filesystem::copy(folder + "/model.safetensors", folder + "/twice.safetensors");
  refused(R"({"weight_map": {"lm_head.weight": "model.safetensors", "a": "twice.safetensors"}})",
          "stands in another file too");
}

TEST_F(ImportedFolder, HasItsTokenizerWhereACheckpointIsMovedOrResharded) {
  const std::string folder = copy_of("llama3");
  const std::string golden = FLASHSHARD_TEST_DATA "/runtime/data/golden/tokenizer.model";
  std::filesystem::copy(golden, folder + "/tokenizer.model");
  const ImportResult imported = import_from(folder, "model");
  EXPECT_EQ(imported.tokenizer, "sentencepiece");
  const auto open_tokenizer = [](const std::string& checkpoint) {
    const auto alone = std::move(make_thread_communicators(1).front());
    return TrainedModel(checkpoint, *alone, TrainedModel::Use::kText).open_tokenizer()->identity();
  };
  const data::TokenizerIdentity expected = open_tokenizer(imported.path);

  std::filesystem::create_directories(run_ / "elsewhere/alone");
  const std::string moved = run_ / "elsewhere/alone/step-00000000";
  std::filesystem::copy(imported.path, moved);
  EXPECT_EQ(open_tokenizer(moved), expected);

  const std::string other = run_ / "resharded/checkpoints";
  const auto resharded =
      checkpoint::reshard({.source = imported.path, .ranks = 2, .folder = other});
  copy_tokenizer(imported.path, resharded.path);
  EXPECT_EQ(read_text(run_ / "resharded/tokenizer/tokenizer.model"), read_text(golden));
  std::filesystem::remove_all(run_ / "model/tokenizer");
  EXPECT_EQ(open_tokenizer(resharded.path), expected);
  // What is there already is never replaced, and what is gone leaves no empty folder.
  EXPECT_NO_THROW(copy_tokenizer(imported.path, resharded.path));
  EXPECT_EQ(read_text(run_ / "resharded/tokenizer/tokenizer.model"), read_text(golden));
  EXPECT_THROW(copy_tokenizer(imported.path, moved), Error);
  EXPECT_FALSE(std::filesystem::exists(run_ / "elsewhere/tokenizer"));
}

TEST_F(ImportedFolder, WithADamagedTokenizerIsImportedWithoutIt) {
  const std::string folder = copy_of("llama3");
  const auto expected = import_from(folder, "without").hash;
  write_text(folder + "/tokenizer.model", "no model");
  const ImportResult result = import_from(folder, "damaged");
  EXPECT_EQ(result.hash, expected);
  EXPECT_EQ(result.tokenizer, "");
  EXPECT_THAT(result.warnings, ElementsAre(AllOf(HasSubstr("its tokenizer is left aside"),
                                                 HasSubstr("tokenizer.model"))));
  EXPECT_FALSE(std::filesystem::exists(run_ / "damaged/tokenizer"));
}

TEST_F(ImportedFolder, WithoutAModelIsRefused) {
  EXPECT_EQ(failure(run_ / "nowhere").code(), ExitCode::kUsage);
  const std::string folder = copy_of("llama3");
  std::filesystem::remove(folder + "/model.safetensors");
  const Error error = failure(folder);
  EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
  EXPECT_THAT(error.what(), HasSubstr("no model.safetensors"));
}

TEST_F(ImportedFolder, NeverReplacesAnythingAndLeavesNothingBehindWhateverCallFails) {
  const std::string folder = copy_of("llama3");
  std::filesystem::create_directory(run_ / "refused");
  EXPECT_EQ(failure(folder).code(), ExitCode::kUsage);
  EXPECT_TRUE(std::filesystem::is_empty(run_ / "refused"));
  std::filesystem::remove(run_ / "refused");

  const std::set<std::string> changing = {"create", "write",          "sync",          "close",
                                          "rename", "make_directory", "sync_directory"};
  for (const auto& [number, code] :
       {std::pair(ENOSPC, ExitCode::kOutOfSpace), std::pair(EACCES, ExitCode::kUsage)}) {
    bool done = false;
    for (int at = 0; !done; ++at) {
      int calls = 0;
      FaultyFileSystem faulty([&](const std::string& call, const std::string&) {
        return changing.contains(call) && calls++ == at ? number : 0;
      });
      const Error error = failure(folder, faulty);
      done = calls <= at;
      const bool there = std::filesystem::exists(run_ / "refused");
      if (error.code() == ExitCode::kDone || there) {
        // The folder has its name: what failed came after that, or was `latest`.
        EXPECT_THAT(checkpoint::verify(run_ / "refused").findings, IsEmpty()) << at;
      } else {
        EXPECT_EQ(error.code(), code) << at;
      }
      std::filesystem::remove_all(run_ / "refused");
      for (const auto& entry : std::filesystem::directory_iterator(run_.path())) {
        EXPECT_EQ(entry.path().filename(), std::filesystem::path(folder).filename()) << at;
      }
      ASSERT_LT(at, 300);
    }
  }
}

TEST(Fp16, IsReadExactly) {
  EXPECT_EQ(fp16_to_float(0x3c00), 1.0f);
  EXPECT_EQ(fp16_to_float(0xc000), -2.0f);
  EXPECT_EQ(fp16_to_float(0x7bff), 65504.0f);
  EXPECT_EQ(fp16_to_float(0x0400), 0x1p-14f);
  EXPECT_EQ(fp16_to_float(0x03ff), 1023 * 0x1p-24f);
  EXPECT_EQ(fp16_to_float(0x8001), -0x1p-24f);
  EXPECT_TRUE(std::signbit(fp16_to_float(0x8000)));
  EXPECT_EQ(fp16_to_float(0xfc00), -INFINITY);
  EXPECT_TRUE(std::isnan(fp16_to_float(0x7e01)));
}

}  // namespace
}  // namespace flashshard::exchange
