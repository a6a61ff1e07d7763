// Shard files under zstd: other programs see plain zstd, ours reads any range, and whatever a file
// says of itself it cannot ask for more memory than its content has. A checkpoint of such files is
// the same checkpoint.
#include "runtime/checkpoint/zstd_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zstd.h>

#include <cstring>
#include <random>

#include "runtime/checkpoint/inspect.h"
#include "runtime/checkpoint/load.h"
#include "runtime/checkpoint/reader.h"
#include "runtime/checkpoint/reshard.h"
#include "runtime/checkpoint/verify.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr size_t kFrame = kZstdFrameBytes;

/// Bytes of which every other one is like the last of its kind: they shrink, but not to nothing.
std::string sample_content(size_t size) {
  std::mt19937 random(static_cast<uint32_t>(size));
  std::string content(size, 'w');
  for (size_t i = 0; i < size; i += 2) content[i] = static_cast<char>(random());
  return content;
}

std::string decompress(const std::string& file, size_t most) {
  std::string content(most, '\0');
  const size_t size = ZSTD_decompress(content.data(), content.size(), file.data(), file.size());
  EXPECT_EQ(ZSTD_isError(size), 0u) << ZSTD_getErrorName(size);
  content.resize(ZSTD_isError(size) != 0 ? 0 : size);
  return content;
}

void set_number(std::string& file, size_t at, uint32_t number) {
  std::memcpy(file.data() + at, &number, sizeof(number));
}

class ZstdFile : public ::testing::Test {
 protected:
  /// Writes the content in pieces of `piece` bytes.
  void write(const std::string& content, size_t piece, int level = 1) {
    std::filesystem::remove(path_);
    ZstdOutputFile file(posix_file_system(), path_, level);
    for (size_t at = 0; at < content.size(); at += piece) {
      file.write(bytes_of(std::string_view(content).substr(at, piece)));
    }
    file.finish();
    EXPECT_EQ(file.bytes(), read_text(path_).size());
    EXPECT_EQ(file.hash(), xxh3_128(bytes_of(read_text(path_))));
  }
  ZstdInputFile open(uint64_t content_bytes) const {
    return {InputFile(posix_file_system(), path_), content_bytes};
  }
  std::string read(const ZstdInputFile& file, uint64_t offset, size_t size) const {
    std::string bytes(size, '\0');
    file.read(offset, std::as_writable_bytes(std::span(bytes)));
    return bytes;
  }
  /// What reading a changed file with the size that its content must have ends in.
  std::string error_after(const std::function<void(std::string&)>& change, uint64_t content_bytes) {
    const std::string original = read_text(path_);
    std::string changed = original;
    change(changed);
    write_text(path_, changed);
    std::string error;
    try {
      read(open(content_bytes), 0, content_bytes);
    } catch (const Error& refused) {
      EXPECT_EQ(refused.code(), ExitCode::kCheckpoint);
      error = refused.what();
    }
    write_text(path_, original);
    return error;
  }

  TemporaryFolder folder_;
  std::string path_ = folder_ / "file.zst";
};

TEST_F(ZstdFile, IsDecompressedByZstdAloneAndReadBackWhateverPiecesItWasWrittenIn) {
  for (const size_t size :
       {size_t{0}, size_t{1}, kFrame - 1, kFrame, kFrame + 1, 3 * kFrame + 77}) {
    const std::string content = sample_content(size);
    for (const size_t piece : {size_t{100'000}, kFrame, 2 * kFrame + 5}) {
      write(content, piece);
      EXPECT_EQ(decompress(read_text(path_), size), content) << size << " in " << piece;
      const ZstdInputFile file = open(size);
      EXPECT_EQ(file.size(), size);
      EXPECT_EQ(read(file, 0, size), content) << size << " in " << piece;
    }
  }
}

TEST_F(ZstdFile, IsSmallerAtEveryLevel) {
  const std::string content = sample_content(2 * kFrame);
  for (const int level : {1, 3, 19}) {
    write(content, kFrame, level);
    EXPECT_LT(read_text(path_).size(), content.size() * 3 / 4) << level;
    EXPECT_EQ(read(open(content.size()), 0, content.size()), content) << level;
  }
}

TEST_F(ZstdFile, GivesAnyRangeOfItsContent) {
  const std::string content = sample_content(4 * kFrame + 1234);
  write(content, content.size());
  const ZstdInputFile file = open(content.size());
  std::mt19937_64 random(1);
  for (int i = 0; i < 40; ++i) {
    const size_t offset = random() % content.size();
    const size_t size = random() % (content.size() - offset + 1);
    EXPECT_EQ(read(file, offset, size), content.substr(offset, size)) << offset << " " << size;
  }
  EXPECT_EQ(read(file, content.size(), 0), "");
  EXPECT_THROW(read(file, content.size() - 1, 2), Error);
  EXPECT_THROW(read(file, ~uint64_t{0}, 2), Error);
}

TEST_F(ZstdFile, IsRefusedWhereItsTableIsNotThatOfItsContent) {
  const size_t size = 2 * kFrame + 10;
  write(sample_content(size), size);
  const size_t end = read_text(path_).size();
  const size_t table = end - 9 - 3 * 8 - 8;
  const auto with_number = [&](size_t at, uint32_t number) {
    return error_after([&](std::string& file) { set_number(file, at, number); }, size);
  };
  const auto same = [](std::string&) {};
  EXPECT_THAT(error_after(same, size), "");
  EXPECT_THAT(error_after(same, size + 1), HasSubstr("frame 2 another size"));
  EXPECT_THAT(error_after(same, 4 * kFrame), HasSubstr("seek table is not that"));
  EXPECT_THAT(error_after(same, ~uint64_t{0}), HasSubstr("cannot hold the 70368744177664 frames"));
  EXPECT_THAT(error_after([](std::string& file) { file.clear(); }, size), HasSubstr("cannot hold"));
  EXPECT_THAT(error_after([](std::string& file) { file.pop_back(); }, size), HasSubstr("table"));
  EXPECT_THAT(error_after([](std::string& file) { file.insert(0, 1, 'x'); }, size),
              AllOf(HasSubstr("its frames do not fill it"), HasSubstr(path_)));
  EXPECT_THAT(with_number(table, 0), HasSubstr("seek table is not that"));
  EXPECT_THAT(with_number(table + 4, 0xffffffff), HasSubstr("seek table is not that"));
  EXPECT_THAT(with_number(table + 8, 0), HasSubstr("frame 0 another size"));
  EXPECT_THAT(with_number(table + 8, 0xffffffff), HasSubstr("frame 0 another size"));
  EXPECT_THAT(with_number(table + 8, 7), HasSubstr("do not fill it"));
  EXPECT_THAT(with_number(table + 12, 1u << 30), HasSubstr("frame 0 another size"));
  EXPECT_THAT(with_number(end - 9, 4), HasSubstr("seek table is not that"));
  EXPECT_THAT(with_number(end - 4, 0), HasSubstr("seek table is not that"));
}

TEST_F(ZstdFile, ThatWouldDecodeToMoreOrLessThanItsContentIsRefused) {
  const std::string content = sample_content(kFrame);
  write(content, kFrame);
  for (const size_t decoded : {size_t{1} << 26, kFrame - 1, size_t{0}}) {
    const std::string zeros(decoded, '\0');
    std::string frame(ZSTD_compressBound(decoded), '\0');
    frame.resize(ZSTD_compress(frame.data(), frame.size(), zeros.data(), decoded, 1));
    const std::string error = error_after(
        [&](std::string& file) {
          const std::string table = file.substr(file.size() - 25);
          file = frame + table;
          set_number(file, frame.size() + 8, static_cast<uint32_t>(frame.size()));
        },
        kFrame);
    EXPECT_THAT(error, HasSubstr(decoded > kFrame ? "frame 0 cannot be decoded: Destination buffer"
                                                  : "frame 0 decodes to "));
  }
}

/// Checkpoints of the sample, plain and under zstd.
class UnderZstd : public ::testing::Test {
 protected:
  void save_at(int level, const std::string& folder, int world_size) {
    const auto errors = errors_of_ranks(world_size, [&](Communicator& communicator) {
      const SampleState state(communicator.rank(), world_size, 20);
      save({.folder = folder,
            .run = sample_run(20),
            .layout = &state.layout(),
            .views = state.views(),
            .zstd_level = level},
           communicator);
    });
    ASSERT_THAT(errors, Each(""));
  }

  TemporaryFolder run_;
  std::string folder_ = run_ / "checkpoints";
  std::string step_ = folder_ + "/step-00000020";
};

TEST_F(UnderZstd, ACheckpointIsTheSameToEveryReader) {
  const std::string plain = run_ / "plain";
  save_at(0, plain, 3);
  save_at(1, folder_, 3);
  EXPECT_EQ(hash(folder_), hash(plain));
  EXPECT_THAT(verify(folder_).findings, IsEmpty());
  for (const std::string& name : list(posix_file_system(), plain + "/step-00000020")) {
    if (!name.ends_with(".safetensors")) continue;
    const std::string content = read_text(plain + "/step-00000020/" + name);
    EXPECT_EQ(decompress(read_text(step_ + "/" + name + ".zst"), content.size()), content) << name;
  }
  for (const int ranks : {1, 2, 5}) {
    const auto errors = errors_of_ranks(ranks, [&](Communicator& communicator) {
      const SampleState state(communicator.rank(), ranks, 0);
      load({.step_folder = step_, .layout = &state.layout(), .views = state.views()}, communicator);
      EXPECT_EQ(live_hash(state.layout(), state.views(), communicator), hash(plain));
    });
    EXPECT_THAT(errors, Each("")) << ranks;
  }
}

TEST_F(UnderZstd, ACheckpointComesFromReshardAndGoesBackToPlainFiles) {
  const std::string saved = run_ / "saved";
  save_at(3, folder_, 4);
  save_at(3, saved, 2);
  const auto expect_same = [](const std::string& a, const std::string& b) {
    for (const std::string& name : list(posix_file_system(), a + "/step-00000020")) {
      EXPECT_EQ(read_text(a + "/step-00000020/" + name), read_text(b + "/step-00000020/" + name))
          << name;
    }
  };
  reshard({.source = folder_, .ranks = 2, .folder = run_ / "for-2", .zstd_level = 3});
  expect_same(saved, run_ / "for-2");

  const std::string plain = run_ / "plain";
  save_at(0, plain, 4);
  reshard({.source = run_ / "for-2", .ranks = 4, .folder = run_ / "unpacked"});
  expect_same(plain, run_ / "unpacked");
}

TEST_F(UnderZstd, AFlippedBitAnywhereInAFileIsFoundAndItsFileNamed) {
  save_at(1, folder_, 2);
  for (const std::string& name :
       std::vector<std::string>{"weights-00000.safetensors.zst", "state-00001.safetensors.zst"}) {
    const std::string path = step_ + "/" + name;
    const std::string original = read_text(path);
    // Headers of the frame, its block and checksum, and the table; another bit each time.
    for (size_t at = 0; at < original.size();
         at += (at < 24 || at + 48 > original.size() ? 1 : 211)) {
      std::string changed = original;
      changed[at] = static_cast<char>(changed[at] ^ (1 << at % 8));
      write_text(path, changed);
      const auto findings = verify(step_).findings;
      ASSERT_FALSE(findings.empty()) << name << " byte " << at;
      EXPECT_THAT(findings, Each(::testing::Field(&Finding::file, name))) << "byte " << at;
    }
    write_text(path, original + "x");
    EXPECT_THAT(verify(step_).findings, SizeIs(1));
    write_text(path, original);
  }
  EXPECT_THAT(verify(step_).findings, IsEmpty());
}

TEST_F(UnderZstd, ADamagedFrameNamesItsTensorsAndStopsAllRanks) {
  save_at(1, folder_, 2);
  const std::string path = step_ + "/state-00001.safetensors.zst";
  std::string bytes = read_text(path);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 16);
  write_text(path, bytes);
  const auto errors = errors_of_ranks(2, [&](Communicator& communicator) {
    const SampleState state(communicator.rank(), 2, 0);
    load({.step_folder = step_, .layout = &state.layout(), .views = state.views()}, communicator);
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("rank 1"), HasSubstr("state-00001.safetensors.zst"))));
}

TEST_F(UnderZstd, InspectCountsTheBytesOnDisk) {
  save_at(1, folder_, 2);
  const Inspection inspection = inspect(folder_);
  EXPECT_TRUE(inspection.under_zstd);
  int64_t bytes = 0;
  for (const std::string& name : list(posix_file_system(), step_)) {
    bytes += static_cast<int64_t>(read_text(step_ + "/" + name).size());
  }
  EXPECT_EQ(inspection.file_bytes, bytes);
  EXPECT_THAT(to_text(inspection), HasSubstr(", under zstd"));
}

}  // namespace
}  // namespace flashshard::checkpoint
