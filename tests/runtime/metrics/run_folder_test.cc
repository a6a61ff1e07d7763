// One folder, one run: creation, exclusive use, what is refused and why.
#include "runtime/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "tests/runtime/metrics/temporary_folder.h"

namespace flashshard {
namespace {

using ::testing::AllOf;
using testing::contents_of;
using testing::error_of;
using ::testing::HasSubstr;
using testing::in_child;
using testing::put;
using testing::TemporaryFolder;
using namespace std::chrono_literals;

TEST(RunFolder, MakesItsFoldersAndNamesItsFiles) {
  const TemporaryFolder parent;
  const RunFolder folder = RunFolder::create(parent / "run");
  for (const char* name : {"tensorboard", "checkpoints", "logs", "status"}) {
    EXPECT_TRUE(std::filesystem::is_directory(parent / "run" / name)) << name;
  }
  EXPECT_EQ(folder.config_path(), parent / "run/config.textproto");
  EXPECT_EQ(folder.metrics_path(), parent / "run/metrics.jsonl");
  EXPECT_EQ(folder.memory_path(), parent / "run/memory.json");
  EXPECT_EQ(folder.tensorboard_directory(), parent / "run/tensorboard");
  EXPECT_EQ(folder.checkpoints_directory(), parent / "run/checkpoints");
  EXPECT_EQ(folder.stop_path(), parent / "run/stop");
  EXPECT_EQ(folder.log_path(0), parent / "run/logs/rank-00000.log");
  EXPECT_EQ(folder.status_path(17), parent / "run/status/rank-00017.json");
  EXPECT_EQ(folder.directory(), parent / "run");
}

TEST(RunFolder, IsOpenedAgainAfterTheRunEndedWithItsFilesKept) {
  const TemporaryFolder parent;
  {
    const RunFolder folder = RunFolder::create(parent / "run/");
    folder.write_config("run { seed: 1 }\n");
  }
  const RunFolder again = RunFolder::create(parent / "run");
  EXPECT_EQ(contents_of(again.config_path()), "run { seed: 1 }\n");
}

TEST(RunFolder, RefusesASecondTrainerAndNamesTheFirst) {
  const TemporaryFolder parent;
  const RunFolder first = RunFolder::create(parent / "run");
  const Error error = error_of([&] { RunFolder::create(parent / "run"); });
  EXPECT_EQ(error.code(), ExitCode::kUsage);
  std::array<char, 256> host = {};
  ASSERT_EQ(gethostname(host.data(), host.size() - 1), 0);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("in use by process " + std::to_string(getpid())),
                                  HasSubstr(std::string(" on ") + host.data()),
                                  HasSubstr((parent / "run").string())));
}

TEST(RunFolder, IsHeldByWhomeverItWasMovedTo) {
  const TemporaryFolder parent;
  auto first = std::make_unique<RunFolder>(RunFolder::create(parent / "run"));
  auto second = std::make_unique<RunFolder>(std::move(*first));
  first.reset();
  EXPECT_EQ(error_of([&] { RunFolder::create(parent / "run"); }).code(), ExitCode::kUsage);
  second.reset();
  EXPECT_NO_THROW(RunFolder::create(parent / "run"));
}

TEST(RunFolder, RefusesAnUnnamedHolderToo) {
  const TemporaryFolder parent;
  const RunFolder first = RunFolder::create(parent / "run");
  put(parent / "run/.lock", "torn");
  EXPECT_THAT(error_of([&] { RunFolder::create(parent / "run"); }).what(),
              HasSubstr("in use by another process"));
}

TEST(RunFolder, IsFreeOnceItsHolderWasKilled) {
  const TemporaryFolder parent;
  std::array<int, 2> ready = {};
  ASSERT_EQ(pipe(ready.data()), 0);
  const pid_t holder = fork();
  if (holder == 0) {
    const RunFolder folder = RunFolder::create(parent / "run");
    if (write(ready[1], "x", 1) == 1) pause();
    _exit(0);
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_THAT(error_of([&] { RunFolder::create(parent / "run"); }).what(),
              HasSubstr("process " + std::to_string(holder)));
  ASSERT_EQ(kill(holder, SIGKILL), 0);
  ASSERT_EQ(waitpid(holder, nullptr, 0), holder);
  EXPECT_NO_THROW(RunFolder::create(parent / "run"));
  close(ready[0]);
  close(ready[1]);
}

TEST(RunFolder, RefusesPathsThatCannotHoldARun) {
  const TemporaryFolder parent;
  put(parent / "file", "");
  const struct {
    std::filesystem::path path;
    const char* what;
  } cases[] = {
      {"", "run.dir is empty"},
      {parent / "file", "run.dir is not a folder"},
      {parent / "file/run", "the folder that should hold the run folder does not exist"},
      {parent / "missing/run", "mkdir -p '"},
      {parent / std::string(300, 'x'), "cannot create the run folder: File name too long"},
  };
  for (const auto& refused : cases) {
    const Error error = error_of([&] { RunFolder::create(refused.path); });
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(), HasSubstr(refused.what));
  }
}

/// Root may write anywhere, so the attempt is made as somebody else where the tests run as root.
int try_as_ordinary_user(const std::filesystem::path& directory, const std::string& message) {
  return in_child([&] {
    if (getuid() == 0 && setuid(65534) != 0) return 100;
    const Error error = error_of([&] { RunFolder::create(directory); });
    const bool told = std::string(error.what()).find(message) != std::string::npos;
    return told ? static_cast<int>(error.code()) : 101;
  });
}

TEST(RunFolder, RefusesPlacesItMayNotWriteTo) {
  const TemporaryFolder parent;
  std::filesystem::create_directory(parent / "run");
  for (const auto& path : {parent / "run", parent.path()}) {
    std::filesystem::permissions(path, std::filesystem::perms(0555));
  }
  EXPECT_EQ(try_as_ordinary_user(parent / "run", "cannot write into the run folder: Permission"),
            2);
  EXPECT_EQ(try_as_ordinary_user(parent / "other", "cannot create the run folder: Permission"), 2);
  for (const auto& path : {parent.path(), parent / "run"}) {
    std::filesystem::permissions(path, std::filesystem::perms(0755));
  }
}

TEST(RunFolder, SaysSoWhenTheDiskIsFull) {
  const TemporaryFolder parent;
  const RunFolder folder = RunFolder::create(parent / "run");
  std::filesystem::create_symlink("/dev/full", folder.config_path().string() + ".tmp");
  const Error error = error_of([&] { folder.write_config("run {}"); });
  EXPECT_EQ(error.code(), ExitCode::kOutOfSpace);
  EXPECT_THAT(error.what(), HasSubstr("No space left on device"));

  const testing::FileSizeLimit limit(4);
  EXPECT_EQ(error_of([&] { RunFolder::create(parent / "other"); }).code(), ExitCode::kOutOfSpace);
}

TEST(RunFolder, OtherRanksJoinWithTheTicketOfRankZero) {
  const TemporaryFolder parent;
  const RunFolder first = RunFolder::create(parent / "run");
  const RunFolder joined = RunFolder::join(parent / "run", first.ticket(), 0ms);
  EXPECT_EQ(joined.log_path(1), first.log_path(1));
  EXPECT_EQ(joined.ticket(), first.ticket());
}

TEST(RunFolder, RefusesToJoinAFolderThatRankZeroDoesNotSee) {
  const TemporaryFolder parent;
  const RunFolder first = RunFolder::create(parent / "run");
  const RunFolder lookalike = RunFolder::create(parent / "lookalike");
  for (const char* name : {"lookalike", "missing"}) {
    const Error error = error_of([&] { RunFolder::join(parent / name, first.ticket(), 60ms); });
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("not the one that rank 0 sees"), HasSubstr(name)));
  }
}

TEST(RunFolder, RefusesToJoinWhereARankCouldNotWrite) {
  const TemporaryFolder parent;
  const RunFolder first = RunFolder::create(parent / "run");
  std::filesystem::remove(parent / "run/status");
  EXPECT_THAT(error_of([&] { RunFolder::join(parent / "run", first.ticket(), 0ms); }).what(),
              HasSubstr("cannot write into the run folder from"));
}

}  // namespace
}  // namespace flashshard
