// dataset.json: read back as written, and refused with the field's name when anything in it is
// wrong.
#include "runtime/data/dataset_manifest.h"

#include <nlohmann/json.hpp>

#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

DatasetManifest example() {
  DatasetManifest manifest;
  manifest.validation_fraction = 0.05;
  manifest.validation_block_tokens = 1024;
  manifest.train = {{.tokens = 100, .payload_hash = ~uint64_t{0}},
                    {.tokens = 7, .payload_hash = 1}};
  manifest.validation = {{.tokens = 5, .payload_hash = 2}};
  manifest.tokenizer_hash = 0x8000000000000001;
  manifest.end_of_document = 255;
  manifest.loss_mask = true;
  manifest.train_totals = {.documents = 3, .text_bytes = 90, .counted = 60};
  manifest.validation_totals = {.documents = 1, .text_bytes = 4, .counted = 5};
  manifest.sources = {{.name = "a \"b\".txt", .bytes = 112, .hash = 3}};
  return manifest;
}

TEST(DatasetManifest, IsReadBackAsItWasWritten) {
  DataFolder folder;
  write_manifest(folder.path(), example());
  EXPECT_EQ(read_manifest(folder.path()), example());
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"dataset.json"});
}

TEST(DatasetManifest, OfVersionOneIsBytesWithoutEndsOfDocuments) {
  DataFolder folder;
  DatasetManifest old = example();
  old.tokenizer_hash = 0;
  write_manifest(folder.path(), old);
  auto json = nlohmann::json::parse(read_file(folder / "dataset.json"));
  json["version"] = 1;
  for (const char* field :
       {"tokenizer_hash", "end_of_document", "loss_mask", "train_totals", "validation_totals"}) {
    json.erase(field);
  }
  write_file(folder / "dataset.json", json.dump());
  const DatasetManifest read = read_manifest(folder.path());
  EXPECT_EQ(read.fingerprint(), old.fingerprint());
  EXPECT_EQ(read.identity(), TokenizerIdentity{});
  EXPECT_EQ(read.bytes_per_token(Split::kValidation), 1.0);
}

TEST(DatasetManifest, KnowsBytesPerTokenWhereTextWasCounted) {
  EXPECT_EQ(example().bytes_per_token(Split::kTrain), 1.5);
  DatasetManifest foreign;
  foreign.tokenizer = "llm.c";
  EXPECT_EQ(foreign.bytes_per_token(Split::kTrain), std::nullopt);
}

TEST(DatasetManifest, RecordsASourceNameThatIsNoText) {
  DataFolder folder;
  DatasetManifest manifest = example();
  manifest.sources[0].name = "\xff.txt";
  write_manifest(folder.path(), manifest);
  EXPECT_EQ(read_manifest(folder.path()).train, manifest.train);
}

TEST(DatasetManifest, FingerprintFollowsTheTokensAndNotTheSources) {
  DatasetManifest other = example();
  other.sources[0].name = "elsewhere/c.txt";
  EXPECT_EQ(other.fingerprint(), example().fingerprint());
  other.tokenizer_hash ^= 1;
  EXPECT_NE(other.fingerprint(), example().fingerprint());
  other.tokenizer_hash ^= 1;
  other.train[1].payload_hash ^= 1;
  EXPECT_NE(other.fingerprint(), example().fingerprint());
}

TEST(DatasetManifest, MissingFolderAndUnfinishedFolderAreTwoErrors) {
  DataFolder folder;
  EXPECT_THAT(error_of([&] { read_manifest(folder / "absent"); }),
              AllOf(StartsWith("3: data folder does not exist"), HasSubstr("absent")));
  EXPECT_THAT(error_of([&] { read_manifest(folder.path()); }),
              AllOf(StartsWith("3: "), HasSubstr("has no dataset.json")));
  write_file(folder / "dataset.json", "{\"format\": ");
  EXPECT_THAT(error_of([&] { read_manifest(folder.path()); }), StartsWith("3: is not valid JSON"));
}

struct FieldCase {
  const char* pointer;  // JSON pointer
  const char* value;    // JSON text; empty: the field is removed
  const char* message;
};
class BadField : public testing::TestWithParam<FieldCase> {};

TEST_P(BadField, IsRefusedByName) {
  DataFolder folder;
  write_manifest(folder.path(), example());
  auto json = nlohmann::json::parse(read_file(folder / "dataset.json"));
  const nlohmann::json::json_pointer pointer(GetParam().pointer);
  if (std::string_view(GetParam().value).empty()) {
    json.at(pointer.parent_pointer()).erase(pointer.back());
  } else {
    json.at(pointer) = nlohmann::json::parse(GetParam().value);
  }
  write_file(folder / "dataset.json", json.dump());
  EXPECT_THAT(
      error_of([&] { read_manifest(folder.path()); }),
      AllOf(StartsWith("3: field `"), HasSubstr(GetParam().message), HasSubstr("dataset.json")));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadField,
    testing::Values(
        FieldCase{"/format", "\"other\"", "`format` is not flashshard-dataset"},
        FieldCase{"/format", "", "`format` is not present"},
        FieldCase{"/version", "3", "`version` is not an integer from 1 to 2"},
        FieldCase{"/tokenizer_hash", "1", "`tokenizer_hash` is not text"},
        FieldCase{"/end_of_document", "256", "`end_of_document` is not an integer from -1 to 255"},
        FieldCase{"/loss_mask", "1", "`loss_mask` is not true or false"},
        FieldCase{"/train_totals", "[]", "`train_totals.` is not an object"},
        FieldCase{"/validation_totals/text_bytes", "-1", "`validation_totals.text_bytes`"},
        FieldCase{"/tokenizer", "7", "`tokenizer` is not text"},
        FieldCase{"/tokenizer", "\"other\"", "`fingerprint` is not that of the other fields"},
        FieldCase{"/vocab_size", "0", "`vocab_size` is not an integer from 1"},
        FieldCase{"/vocab_size", "-1", "`vocab_size`"},
        FieldCase{"/vocab_size", "256.5", "`vocab_size`"},
        FieldCase{"/vocab_size", "18446744073709551615", "`vocab_size`"},
        FieldCase{"/token_bytes", "5", "`token_bytes`"},
        FieldCase{"/validation_fraction", "1.5", "`validation_fraction`"},
        FieldCase{"/validation_fraction", "\"a\"", "`validation_fraction`"},
        FieldCase{"/validation_block_tokens", "-1", "`validation_block_tokens`"},
        FieldCase{"/train", "{}", "`train` is not a list"},
        FieldCase{"/train/1", "3", "`train[1].` is not an object"},
        FieldCase{"/train/1/tokens", "0", "`train[1].tokens`"},
        FieldCase{"/train/1/tokens", "9223372036854775807", "`train[1].tokens`"},
        FieldCase{"/train/0/xxh3_64", "\"12\"", "`train[0].xxh3_64` is not 16 hexadecimal"},
        FieldCase{"/train/0/xxh3_64", "\"00000000000000zz\"", "`train[0].xxh3_64`"},
        FieldCase{"/validation/0/file", "\"../other\"",
                  "`validation[0].file` is not validation-00000.tokens"},
        FieldCase{"/sources/0/bytes", "", "`sources[0].bytes` is not present"}));

}  // namespace
}  // namespace flashshard::data
