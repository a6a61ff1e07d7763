// The manifest comes back as it was written; damaged and hostile ones are refused by name.
#include "runtime/checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "proto/checkpoint.pb.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Optional;

Manifest sample_manifest(int world_size) {
  const test::SampleState state(0, world_size, 7);
  Manifest manifest{test::sample_run(20), schema_of(state.layout(), state.views()), {}, {}};
  for (int rank = 0; rank < world_size; ++rank) {
    for (const FileKind kind : {FileKind::kWeights, FileKind::kState}) {
      FileRecord record{file_name(kind, rank), rank, 1000, {1, 2}, {}};
      record.tensors.push_back({"t", 10, {3, 4}});
      manifest.files.push_back(record);
    }
  }
  for (size_t c = 0; c < kStateClasses; ++c)
    manifest.logical_hash.by_class[c] = {c, ~uint64_t{0} - c};
  return manifest;
}

/// A frame around a message, as an attacker could make it.
std::string framed(const proto::Manifest& message) {
  const std::string payload = message.SerializeAsString();
  std::string text = "FSHMANI1";
  for (size_t i = 0; i < 8; ++i) text += static_cast<char>(payload.size() >> (8 * i) & 0xff);
  text += payload;
  const std::string hex = xxh3_128(bytes_of(payload)).hex();
  for (size_t i = 0; i < 32; i += 2) {
    text += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return text;
}

proto::Manifest message_of(const std::string& pb) {
  proto::Manifest message;
  EXPECT_TRUE(message.ParseFromString(pb.substr(16, pb.size() - 32)));
  return message;
}

TEST(Manifest, ComesBackAsItWasWritten) {
  const Manifest manifest = sample_manifest(3);
  const ManifestFiles files = encode_manifest(manifest);
  EXPECT_TRUE(manifest_frame_holds(files.pb));
  const Manifest read = decode_manifest(files.pb, "manifest.pb");
  EXPECT_EQ(read.run, manifest.run);
  EXPECT_EQ(read.schema.layout.world_size(), 3);
  EXPECT_EQ(read.schema.states, manifest.schema.states);
  EXPECT_NO_THROW(require_same_tensors(read.schema, manifest.schema, ""));
  EXPECT_EQ(read.schema.layout.parameter(3).decay, false);
  EXPECT_EQ(read.schema.layout.parameter(4).layer, 2);
  ASSERT_EQ(read.files.size(), 6u);
  EXPECT_EQ(read.file(FileKind::kState, 2).name, "state-00002.safetensors");
  EXPECT_EQ(read.files[5].hash, manifest.files[5].hash);
  EXPECT_EQ(read.files[5].tensors[0].hash, manifest.files[5].tensors[0].hash);
  EXPECT_EQ(read.logical_hash, manifest.logical_hash);
}

TEST(Manifest, ItsJsonIsForPeopleAndScripts) {
  const ManifestFiles files = encode_manifest(sample_manifest(2));
  const auto json = nlohmann::json::parse(files.json);
  EXPECT_EQ(json["format_version"], 1);
  EXPECT_EQ(json["step"], "20");  // protobuf JSON writes 64-bit numbers as strings
  EXPECT_EQ(json["world_size"], 2);
  EXPECT_EQ(json["tensors"][1]["parts"][1]["name"], "k");
  EXPECT_EQ(json["tensors"][0]["states"][3]["dtype"], "U16");
  EXPECT_EQ(json["files"][0]["name"], "weights-00000.safetensors");
  EXPECT_THAT(files.json, Not(HasSubstr("zstd"))) << "releases before it compare the content";
  EXPECT_EQ(json_difference(files.pb, files.json), std::nullopt);
  EXPECT_THAT(json_difference(files.pb, files.json + " "), Optional(HasSubstr("not the file")));
}

TEST(Manifest, JsonOfAnotherProtobufReleaseIsComparedByContent) {
  const ManifestFiles files = encode_manifest(sample_manifest(2));
  const std::string compact = nlohmann::json::parse(files.json).dump();
  proto::Manifest message = message_of(files.pb);
  message.set_json_xxh3_128(xxh3_128(bytes_of(compact)).hex());
  EXPECT_EQ(json_difference(framed(message), compact), std::nullopt);

  auto other = nlohmann::json::parse(files.json);
  other["step"] = "21";
  message.set_json_xxh3_128(xxh3_128(bytes_of(other.dump())).hex());
  EXPECT_THAT(json_difference(framed(message), other.dump()), Optional(HasSubstr("its content")));
}

TEST(Manifest, WhatCouldNotBeReadBackIsNotWritten) {
  Manifest manifest = sample_manifest(1);
  manifest.run.config = "\xff is no UTF-8";
  EXPECT_THROW(encode_manifest(manifest), Error);
  manifest = sample_manifest(1);
  manifest.files.pop_back();
  EXPECT_THROW(encode_manifest(manifest), Error);
}

TEST(Manifest, EveryPrefixAndFlippedByteBreaksTheFrame) {
  const std::string pb = encode_manifest(sample_manifest(1)).pb;
  for (size_t size = 0; size < pb.size(); size += 13) {
    EXPECT_FALSE(manifest_frame_holds(pb.substr(0, size))) << size;
  }
  for (size_t at = 0; at < pb.size(); ++at) {
    std::string flipped = pb;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
    EXPECT_FALSE(manifest_frame_holds(flipped)) << at;
  }
  EXPECT_FALSE(manifest_frame_holds(pb + "x"));
}

TEST(FileRecords, TravelBetweenRanks) {
  const Manifest manifest = sample_manifest(2);
  const auto records = decode_files(encode_files(manifest.files));
  ASSERT_EQ(records.size(), 4u);
  EXPECT_EQ(records[3].name, "state-00001.safetensors");
  EXPECT_EQ(records[3].rank, 1);
  EXPECT_EQ(records[3].tensors[0].hash, (Hash128{3, 4}));
  EXPECT_THROW(decode_files("\xff\xff"), Error);
}

using Change = std::function<void(proto::Manifest&)>;
struct Hostile {
  std::string name;
  Change change;
  std::string says;
};
class HostileManifest : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileManifest, IsRefusedThoughItsHashHolds) {
  proto::Manifest message = message_of(encode_manifest(sample_manifest(2)).pb);
  GetParam().change(message);
  const std::string pb = framed(message);
  ASSERT_TRUE(manifest_frame_holds(pb));
  try {
    decode_manifest(pb, "the/manifest.pb");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
    EXPECT_THAT(error.what(), HasSubstr(GetParam().says));
    EXPECT_THAT(error.what(), HasSubstr("the/manifest.pb"));
  }
}

Hostile in_tensor(const std::string& name, std::function<void(proto::Manifest::Tensor&)> change,
                  const std::string& says) {
  return {name, [change](proto::Manifest& m) { change(*m.mutable_tensors(1)); }, says};
}
using T = proto::Manifest::Tensor;

INSTANTIATE_TEST_SUITE_P(
    Cases, HostileManifest,
    ::testing::Values(
        Hostile{"NewerFormat", [](auto& m) { m.set_format_version(3); }, "format version 3"},
        Hostile{"FormatOfZstdWithoutAny", [](auto& m) { m.set_format_version(2); },
                "format_version 2 is not that of its files"},
        Hostile{"ZstdInTheFormatBefore",
                [](auto& m) {
                  m.mutable_files(0)->set_name("weights-00000.safetensors.zst");
                  m.mutable_files(0)->set_zstd_bytes(10);
                  m.mutable_files(0)->set_zstd_xxh3_128(std::string(32, '0'));
                },
                "format_version 1 is not that of its files"},
        Hostile{"ZstdUnderThePlainName",
                [](auto& m) {
                  m.mutable_files(0)->set_zstd_bytes(10);
                  m.mutable_files(0)->set_zstd_xxh3_128(std::string(32, '0'));
                },
                "weights-00000.safetensors.zst"},
        Hostile{"ZstdHashIsNone", [](auto& m) { m.mutable_files(0)->set_zstd_bytes(10); },
                "is no hash"},
        Hostile{"NegativeStep", [](auto& m) { m.set_step(-1); }, "cannot be negative"},
        Hostile{"NoRanks", [](auto& m) { m.set_world_size(0); }, "a world size of 0"},
        Hostile{"TooManyRanks", [](auto& m) { m.set_world_size(2000000000); }, "a world size of"},
        Hostile{"MoreRanksThanFiles", [](auto& m) { m.set_world_size(3); }, "4 files for 3 ranks"},
        Hostile{"NoTensors", [](auto& m) { m.clear_tensors(); }, "no tensors"},
        Hostile{"TensorTwice", [](auto& m) { *m.add_tensors() = m.tensors(0); }, "stands twice"},
        Hostile{"FileOutside", [](auto& m) { m.mutable_files(0)->set_name("../../etc/passwd"); },
                "../../etc/passwd"},
        Hostile{"FileOfAnotherRank", [](auto& m) { m.mutable_files(0)->set_rank(1); }, "of rank 1"},
        Hostile{"FileTooLarge", [](auto& m) { m.mutable_files(2)->set_bytes(~uint64_t{0} - 10); },
                "too large"},
        Hostile{"FilesTooLargeTogether",
                [](auto& m) {
                  for (auto& file : *m.mutable_files()) file.set_bytes(uint64_t{1} << 61);
                },
                "its files are too large"},
        Hostile{"FileHashIsNone", [](auto& m) { m.mutable_files(0)->set_xxh3_128("xyz"); },
                "is no hash"},
        Hostile{"TensorHashIsNone",
                [](auto& m) { m.mutable_files(0)->mutable_tensors(0)->set_xxh3_128(""); },
                "is no hash"},
        Hostile{"ClassHashMissing", [](auto& m) { m.mutable_logical_hashes()->RemoveLast(); },
                "one for each class"},
        Hostile{"ClassHashElsewhere",
                [](auto& m) { m.mutable_logical_hashes(0)->set_name("momentum"); }, "out of place"},
        Hostile{"TotalIsNoSum", [](auto& m) { m.set_logical_hash(std::string(32, '0')); },
                "not the sum"},
        Hostile{"TensorsTooLargeTogether",
                [](auto& m) {
                  m.mutable_tensors(0)->set_rows(int64_t{1} << 51);
                  m.mutable_tensors(1)->set_rows(int64_t{1} << 50);
                },
                "too large"},
        in_tensor(
            "NoName", [](T& tensor) { tensor.clear_name(); }, "name is empty"),
        in_tensor(
            "NoRows", [](T& tensor) { tensor.set_rows(0); }, "must be positive"),
        in_tensor(
            "NegativeCols", [](T& tensor) { tensor.set_cols(-64); }, "must be positive"),
        in_tensor(
            "SizeOverflow", [](T& tensor) { tensor.set_rows(int64_t{1} << 62); }, "too large"),
        in_tensor(
            "NoUnit", [](T& tensor) { tensor.set_unit_rows(0); }, "unit_rows"),
        in_tensor(
            "HugeUnit", [](T& tensor) { tensor.set_unit_rows(int64_t{1} << 60); }, "unit_rows"),
        in_tensor(
            "UnitOfTooManyRows", [](T& tensor) { tensor.set_unit_rows((1 << 16) + 1); },
            "unit_rows"),
        in_tensor(
            "UnitOfTooManyElements",
            [](T& tensor) {
              tensor.set_unit_rows(1);
              tensor.set_cols(int64_t{1} << 40);
            },
            "unit_rows"),
        in_tensor(
            "Transposed", [](T& tensor) { tensor.set_orientation(proto::Manifest::TRANSPOSED); },
            "transposed"),
        in_tensor(
            "UnknownRole",
            [](T& tensor) { tensor.set_role(static_cast<proto::Manifest::Role>(9)); },
            "unknown role"),
        in_tensor(
            "PartOutside", [](T& tensor) { tensor.mutable_parts(2)->set_rows(7); }, "lies outside"),
        in_tensor(
            "PartOverflow",
            [](T& tensor) {
              tensor.mutable_parts(0)->set_rows(std::numeric_limits<int64_t>::max());
            },
            "lies outside"),
        in_tensor(
            "NoStates", [](T& tensor) { tensor.clear_states(); },
            "the first state must be the weight"),
        in_tensor(
            "WeightNotFirst", [](T& tensor) { tensor.mutable_states()->SwapElements(0, 1); },
            "the first state must be the weight"),
        in_tensor(
            "StateTwice", [](T& tensor) { *tensor.add_states() = tensor.states(1); },
            "a name of its own"),
        in_tensor(
            "StateNamedBadly", [](T& tensor) { tensor.mutable_states(1)->set_name("a/b"); },
            "a name of its own"),
        in_tensor(
            "TooManyStates",
            [](T& tensor) {
              while (tensor.states_size() < 17) tensor.add_states();
            },
            "too many states"),
        in_tensor(
            "UnknownDType",
            [](T& tensor) { tensor.mutable_states(1)->set_dtype(proto::Manifest::UNKNOWN); },
            "unknown dtype"),
        in_tensor(
            "GroupOfNone", [](T& tensor) { tensor.mutable_states(3)->set_group(0); }, "groups"),
        in_tensor(
            "GroupCutByUnits", [](T& tensor) { tensor.mutable_states(3)->set_group(48); },
            "groups")),
    [](const auto& test_case) { return test_case.param.name; });

TEST(HostilePayload, ThatIsNoMessageIsRefused) {
  std::string text("FSHMANI1\3\0\0\0\0\0\0\0\xff\xff\xff", 19);
  const std::string hex = xxh3_128(bytes_of("\xff\xff\xff")).hex();
  for (size_t i = 0; i < 32; i += 2) {
    text += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  ASSERT_TRUE(manifest_frame_holds(text));
  EXPECT_THROW(decode_manifest(text, ""), Error);
}

}  // namespace
}  // namespace flashshard::checkpoint
