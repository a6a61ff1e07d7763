// A checkpoint rewritten for another number of ranks is the one that those ranks would have saved.
#include "runtime/checkpoint/reshard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>
#include <set>

#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/reader.h"
#include "runtime/checkpoint/verify.h"
#include "tests/runtime/checkpoint/faulty_file_system.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Resharded : public ::testing::Test {
 protected:
  Resharded() { EXPECT_THAT(save_on_ranks(source_, 20, 4), Each("")); }

  ReshardResult reshard_to(int ranks, FileSystem& file_system = posix_file_system()) {
    return reshard(
        {.source = source_, .ranks = ranks, .folder = target_, .file_system = &file_system});
  }
  Error failure(FileSystem& file_system = posix_file_system()) {
    try {
      reshard_to(3, file_system);
    } catch (const Error& error) {
      return error;
    }
    return {ExitCode::kDone, ""};
  }

  TemporaryFolder run_;
  std::string source_ = run_ / "source";
  std::string target_ = run_ / "target";
};

TEST_F(Resharded, CheckpointsHaveTheFilesOfASaveByThoseRanks) {
  for (const int ranks : {1, 2, 3, 8}) {
    target_ = run_ / std::to_string(ranks);
    const ReshardResult result = reshard_to(ranks);
    EXPECT_EQ(result.path, target_ + "/step-00000020");
    EXPECT_THAT(result.warnings, IsEmpty());
    EXPECT_EQ(result.hash, hash(source_));
    EXPECT_THAT(verify(target_).findings, IsEmpty());
    EXPECT_EQ(read_text(target_ + "/latest"), "step-00000020\n");

    const std::string saved = target_ + "-saved";
    EXPECT_THAT(save_on_ranks(saved, 20, ranks), Each(""));
    for (const std::string& name : list(posix_file_system(), saved + "/step-00000020")) {
      EXPECT_EQ(read_text(result.path + "/" + name), read_text(saved + "/step-00000020/" + name))
          << name << " for " << ranks;
    }
  }
}

TEST_F(Resharded, CheckpointsAreMadeOfMoreFilesThanMayBeOpenAtOnce) {
  const std::string many = run_ / "many";
  EXPECT_THAT(save_on_ranks(many, 20, 70), Each(""));
  source_ = many;
  EXPECT_EQ(reshard_to(2).hash, hash(many));
  EXPECT_THAT(verify(target_).findings, IsEmpty());
}

TEST_F(Resharded, CheckpointsNeverReplaceOneOfTheSameStep) {
  save_on_ranks(target_, 20, 1, 7);
  const LogicalHash before = hash(target_);
  const Error error = failure();
  EXPECT_EQ(error.code(), ExitCode::kUsage);
  EXPECT_THAT(error.what(), HasSubstr("there is a checkpoint of this step already"));
  EXPECT_EQ(hash(target_), before);
}

TEST_F(Resharded, CheckpointsAreNotMadeFromADamagedOne) {
  const std::string path = source_ + "/step-00000020/state-00002.safetensors";
  std::string bytes = read_text(path);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_text(path, bytes);
  const Error error = failure();
  EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
  EXPECT_THAT(list(posix_file_system(), target_), IsEmpty());
}

TEST_F(Resharded, CheckpointsLeaveNothingBehindWhenMemoryRunsOut) {
  int writes = 0;
  FaultyFileSystem small([&](const std::string& call, const std::string&) {
    if (call == "write" && ++writes == 3) throw std::bad_alloc();
    return 0;
  });
  EXPECT_THROW(reshard_to(3, small), std::bad_alloc);
  EXPECT_THAT(list(posix_file_system(), target_), IsEmpty());
}

TEST_F(Resharded, CheckpointsAreWholeOrNotThereWhateverCallFails) {
  const std::set<std::string> changing = {"create", "write",          "sync",          "close",
                                          "rename", "make_directory", "sync_directory"};
  bool reached_the_end = false;
  for (int at = 0; !reached_the_end; ++at) {
    target_ = run_ / ("target" + std::to_string(at));
    int calls = 0;
    FaultyFileSystem full([&](const std::string& call, const std::string&) {
      return changing.contains(call) && calls++ >= at ? ENOSPC : 0;
    });
    const Error error = failure(full);
    const bool there = !list_complete(target_).empty();
    if (there) {
      EXPECT_THAT(verify(target_).findings, IsEmpty()) << at;
    } else {
      EXPECT_EQ(error.code(), ExitCode::kOutOfSpace) << at;
      EXPECT_THAT(error.what(), HasSubstr("No space left")) << at;
    }
    reached_the_end = calls <= at;
    ASSERT_LT(at, 300);
  }
  EXPECT_THAT(list(posix_file_system(), target_), ElementsAre("latest", "step-00000020"));
}

}  // namespace
}  // namespace flashshard::checkpoint
