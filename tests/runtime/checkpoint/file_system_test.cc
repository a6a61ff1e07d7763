// The file system's own calls, and what their errors tell people.
#include "runtime/checkpoint/file_system.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "tests/runtime/checkpoint/faulty_file_system.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct WriteError {
  int error;
  ExitCode code;
  std::string hint;
};
class WriteErrors : public ::testing::TestWithParam<WriteError> {};

TEST_P(WriteErrors, HaveACodeThePathAndAHint) {
  const Error error = write_error("cannot write", "/some/where", GetParam().error);
  EXPECT_EQ(error.code(), GetParam().code);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("/some/where"), HasSubstr(GetParam().hint)));
}

INSTANTIATE_TEST_SUITE_P(Errnos, WriteErrors,
                         ::testing::Values(WriteError{ENOSPC, ExitCode::kOutOfSpace, "free space"},
                                           WriteError{EDQUOT, ExitCode::kOutOfSpace, "keep_last"},
                                           WriteError{EFBIG, ExitCode::kOutOfSpace, "free space"},
                                           WriteError{EIO, ExitCode::kOutOfSpace, "storage failed"},
                                           WriteError{ENOMEM, ExitCode::kOutOfSpace, "free memory"},
                                           WriteError{EACCES, ExitCode::kUsage, "writable"},
                                           WriteError{EROFS, ExitCode::kUsage, "another run.dir"},
                                           WriteError{ENOENT, ExitCode::kUsage, "check run.dir"}));

TEST(ReadErrors, AreOfTheCheckpointUnlessPermissionIsMissing) {
  EXPECT_EQ(read_error("cannot open", "f", EIO).code(), ExitCode::kCheckpoint);
  EXPECT_EQ(read_error("cannot open", "f", ENOENT).code(), ExitCode::kCheckpoint);
  EXPECT_EQ(read_error("cannot open", "f", EACCES).code(), ExitCode::kUsage);
}

TEST(Paths, AreTakenApart) {
  EXPECT_EQ(name_of_path("a/b"), "b");
  EXPECT_EQ(name_of_path("a/b//"), "b");
  EXPECT_EQ(name_of_path("b"), "b");
  EXPECT_EQ(parent_of_path("a/b/"), "a");
  EXPECT_EQ(parent_of_path("b"), ".");
  EXPECT_EQ(parent_of_path("/b"), "/");
  EXPECT_EQ(join("a", "b"), "a/b");
  EXPECT_EQ(join("a/", "b"), "a/b");
  EXPECT_EQ(join("", "b"), "b");
}

TEST(PosixFileSystem, WritesReadsListsAndRemoves) {
  TemporaryFolder folder;
  FileSystem& files = posix_file_system();
  write_file(files, folder / "b", "text");
  EXPECT_EQ(read_file(files, folder / "b", 4), "text");
  EXPECT_THROW(read_file(files, folder / "b", 3), Error) << "larger than the limit";
  EXPECT_THROW(write_file(files, folder / "b", "again"), Error) << "never overwrites";
  EXPECT_EQ(files.create(folder / "b"), -EEXIST);
  EXPECT_EQ(files.open(folder / "none"), -ENOENT);
  make_folders(files, folder / "c/d/e");
  std::filesystem::create_symlink(folder / "b", folder / "l");
  EXPECT_THAT(list(files, folder.path()), ElementsAre("b", "c", "l"));
  EXPECT_EQ(kind_of(files, folder / "b"), PathKind::kFile);
  EXPECT_EQ(kind_of(files, folder / "c"), PathKind::kDirectory);
  EXPECT_EQ(kind_of(files, folder / "l"), PathKind::kOther);
  EXPECT_EQ(kind_of(files, folder / "none"), PathKind::kMissing);
  rename(files, folder / "b", folder / "c/b");
  remove_tree(files, folder / "c");
  EXPECT_EQ(kind_of(files, folder / "c"), PathKind::kMissing);
  EXPECT_THROW(list(files, folder / "c"), Error);
  EXPECT_THROW(rename(files, folder / "c", folder / "d"), Error);
  EXPECT_THROW(sync_folder(files, folder / "c"), Error);
}

TEST(PosixFileSystem, AFolderIsNoFileToRead) {
  TemporaryFolder folder;
  EXPECT_THROW(InputFile(posix_file_system(), folder.path()), Error);
}

TEST(InputFile, NeverReadsBeyondItsEnd) {
  TemporaryFolder folder;
  write_text(folder / "f", "12345");
  const InputFile file(posix_file_system(), folder / "f");
  std::vector<std::byte> bytes(3);
  EXPECT_NO_THROW(file.read(2, bytes));
  EXPECT_THROW(file.read(3, bytes), Error);
  EXPECT_THROW(file.read(~uint64_t{0}, bytes), Error);
  write_text(folder / "f", "1");  // shorter than when it was opened
  EXPECT_THROW(file.read(2, bytes), Error);
}

TEST(MakeFolders, MakesEveryNewFolderDurableInItsParent) {
  TemporaryFolder folder;
  std::vector<std::string> synced;
  FaultyFileSystem files([&](const std::string& call, const std::string& path) {
    if (call == "sync_directory") synced.push_back(path);
    return 0;
  });
  make_folders(files, folder / "a/b");
  EXPECT_THAT(synced, ElementsAre(folder.path(), folder / "a"));
  make_folders(files, folder / "a/b");
  EXPECT_EQ(synced.size(), 2u);
}

TEST(OutputFile, AWriteThatTakesNothingIsAnError) {
  TemporaryFolder folder;
  class Stuck final : public FileSystem {
   public:
    int create(const std::string&) override { return 1000; }
    int open(const std::string&) override { return -ENOENT; }
    int close(int) override { return 0; }
    int64_t write(int, std::span<const std::byte>) override { return 0; }
    int64_t read(int, uint64_t, std::span<std::byte>) override { return 0; }
    int64_t size(int) override { return 0; }
    int sync(int) override { return 0; }
    int sync_directory(const std::string&) override { return 0; }
    int make_directory(const std::string&) override { return 0; }
    int remove_file(const std::string&) override { return 0; }
    int remove_directory(const std::string&) override { return 0; }
    int rename(const std::string&, const std::string&) override { return 0; }
    int list(const std::string&, std::vector<std::string>&) override { return 0; }
    int kind(const std::string&, PathKind&) override { return 0; }
  } stuck;
  EXPECT_THROW(write_file(stuck, "f", "text"), Error);
}

}  // namespace
}  // namespace flashshard::checkpoint
