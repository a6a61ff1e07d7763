// One flipped bit anywhere in a checkpoint, a byte more or less, a file too many or missing:
// `verify` finds it and names the file, and the tensor where it is a tensor's bytes.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/reader.h"
#include "runtime/checkpoint/verify.h"
#include "tests/runtime/checkpoint/sample_state.h"
#include "tests/runtime/checkpoint/simulated_storage.h"

namespace flashshard::checkpoint {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::Field;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

const std::string kStep = "/step-00000020";

/// Of plain files, and under zstd.
class Damage : public ::testing::TestWithParam<int> {
 protected:
  Damage() {
    const auto save_rank = [&](Communicator& communicator) {
      const int rank = communicator.rank();
      HostFileSystem file_system(storage_, 0, rank);
      const SampleState state(rank, 2, 20);
      save({.folder = "/",
            .run = sample_run(20),
            .layout = &state.layout(),
            .views = state.views(),
            .zstd_level = GetParam(),
            .file_system = &file_system},
           communicator);
    };
    EXPECT_THAT(errors_of_ranks(2, save_rank), Each(""));
    EXPECT_THAT(findings(), IsEmpty());
    files_ = list(file_system_, kStep);
    EXPECT_THAT(files_, SizeIs(6));
  }

  std::vector<Finding> findings() { return verify_folder(kStep, file_system_).findings; }
  const std::string& bytes_of_file(const std::string& name) const {
    return storage_.disk().node(storage_.disk().find(kStep + "/" + name)).current;
  }
  /// Findings with other bytes in a file.
  std::vector<Finding> findings_with(const std::string& name, std::string bytes) const {
    Disk disk = storage_.disk();
    disk.node(disk.find(kStep + "/" + name)).current = std::move(bytes);
    SimulatedStorage storage(std::move(disk));
    HostFileSystem file_system(storage);
    return verify_folder(kStep, file_system).findings;
  }
  SafetensorsHeader header_of(const std::string& name) {
    return read_safetensors_header(InputFile(file_system_, kStep + "/" + name));
  }

  SimulatedStorage storage_;
  HostFileSystem file_system_ = HostFileSystem(storage_);
  std::vector<std::string> files_;
};

/// Bytes of a file that mean one thing.
struct Region {
  std::string name;
  size_t begin = 0;
  size_t end = 0;
  std::string tensor = {};  // whose bytes they are
  size_t sample = 256;
};

std::vector<Region> regions_of_manifest(const std::string& bytes) {
  return {{"magic", 0, 8},
          {"length", 8, 16},
          {"payload", 16, bytes.size() - 16},
          {"hash", bytes.size() - 16, bytes.size()}};
}

std::vector<Region> regions_of_shard(const std::string& bytes, const SafetensorsHeader& header) {
  const size_t text_end = bytes.find_last_not_of(' ', header.data_offset - 1) + 1;
  const size_t metadata_end = bytes.find("},\"", 8) + 1;
  std::vector<Region> regions = {{"header length", 0, 8},
                                 {"metadata", 8, metadata_end},
                                 {"header", metadata_end, text_end},
                                 {"padding", text_end, header.data_offset}};
  for (const SafetensorsEntry& tensor : header.entries) {
    regions.push_back({"data", header.data_offset + tensor.begin, header.data_offset + tensor.end,
                       tensor.name, 24});
  }
  return regions;
}

/// The bits to flip: all of a small region; otherwise those of its first, middle and last byte, and
/// a sample of the others.
std::vector<size_t> bits_of(const Region& region) {
  std::vector<size_t> bits;
  const size_t size = region.end - region.begin;
  const auto add_byte = [&](size_t byte) {
    for (size_t bit = 0; bit < 8; ++bit) bits.push_back(8 * byte + bit);
  };
  if (size <= 16) {
    for (size_t byte = region.begin; byte < region.end; ++byte) add_byte(byte);
    return bits;
  }
  for (const size_t byte : {region.begin, region.begin + size / 2, region.end - 1}) add_byte(byte);
  std::mt19937_64 random(size);
  for (size_t n = 0; n < region.sample / kSampleDivisor; ++n)
    bits.push_back(8 * region.begin + random() % (8 * size));
  return bits;
}

TEST_P(Damage, OfAnyOneBitIsFoundAndNamed) {
  size_t flips = 0;
  size_t padding = 0;
  for (const std::string& name : files_) {
    const std::string& bytes = bytes_of_file(name);
    const bool is_plain = name.ends_with(".safetensors");
    const auto regions = name == kManifestFile ? regions_of_manifest(bytes)
                         : is_plain            ? regions_of_shard(bytes, header_of(name))
                                               : std::vector<Region>{{"file", 0, bytes.size()}};
    EXPECT_EQ(regions.back().end, bytes.size());
    for (const Region& region : regions) {
      if (region.name == "padding") padding += region.end - region.begin;
      for (const size_t bit : bits_of(region)) {
        std::string flipped = bytes;
        flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
        const auto found = findings_with(name, std::move(flipped));
        ASSERT_THAT(found, AllOf(Not(IsEmpty()), Each(Field(&Finding::file, name))))
            << region.name << ", bit " << bit;
        if (region.name == "data") {
          ASSERT_THAT(found, AllOf(SizeIs(1), Each(Field(&Finding::tensor, region.tensor))));
        }
        ++flips;
      }
    }
  }
  EXPECT_EQ(padding > 0, GetParam() == 0);
  fmt::print("{} flipped bits\n", flips);
}

TEST_P(Damage, OfTheEndOfAFileIsFoundAndNamed) {
  for (const std::string& name : files_) {
    const std::string& bytes = bytes_of_file(name);
    const auto is_named = AllOf(Not(IsEmpty()), Each(Field(&Finding::file, name)));
    for (const size_t size : {size_t{0}, size_t{1}, size_t{7}, size_t{8}, size_t{9}, size_t{24},
                              bytes.size() / 2, bytes.size() - 17, bytes.size() - 1}) {
      EXPECT_THAT(findings_with(name, bytes.substr(0, size)), is_named) << size;
    }
    for (const std::string& more : {std::string(1, '\0'), std::string(" "), std::string("\n"),
                                    std::string(4096, '\0'), bytes}) {
      EXPECT_THAT(findings_with(name, bytes + more), is_named) << more.size();
    }
  }
}

TEST_P(Damage, OfAMissingFileIsFoundAndNamed) {
  for (const std::string& name : files_) {
    SimulatedStorage storage(storage_);
    HostFileSystem file_system(storage);
    ASSERT_EQ(file_system.remove_file(kStep + "/" + name), 0);
    const auto found = verify_folder(kStep, file_system).findings;
    EXPECT_THAT(found, AllOf(Not(IsEmpty()), Each(Field(&Finding::file, name))));
  }
}

TEST_P(Damage, OfForeignFilesIsFoundAndNamed) {
  const std::vector<std::string> foreign = {"notes.txt", ".hidden", "weights-00002.safetensors",
                                            "manifest.pb.old"};
  for (const std::string& name : foreign) write_file(file_system_, kStep + "/" + name, "x");
  ASSERT_EQ(file_system_.make_directory(kStep + "/folder"), 0);
  EXPECT_THAT(findings(), SizeIs(foreign.size() + 1));
  for (const std::string& name : foreign) {
    EXPECT_THAT(findings(), Contains(Field(&Finding::file, name)));
  }
  EXPECT_THAT(findings(), Contains(Field(&Finding::file, "folder")));
}

TEST_P(Damage, OfFilesInEachOthersPlaceIsFoundAndNamed) {
  const std::string suffix = GetParam() > 0 ? ".zst" : "";
  for (const std::string& kind : {std::string("weights"), std::string("state")}) {
    const std::string first = fmt::format("{}-00000.safetensors{}", kind, suffix);
    const std::string second = fmt::format("{}-00001.safetensors{}", kind, suffix);
    EXPECT_THAT(findings_with(first, bytes_of_file(second)),
                AllOf(Not(IsEmpty()), Each(Field(&Finding::file, first))));
  }
}

INSTANTIATE_TEST_SUITE_P(Files, Damage, ::testing::Values(0, 3), [](const auto& level) {
  return std::string(level.param > 0 ? "UnderZstd" : "Plain");
});

}  // namespace
}  // namespace flashshard::checkpoint
