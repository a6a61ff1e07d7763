// `prepare` refuses bad input with one clear line, and no failure harms what is already in the
// folder.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cerrno>
#include <cmath>

#include "runtime/data/file.h"
#include "runtime/data/prepare.h"
#include "runtime/data/token_dataset.h"
#include "tests/runtime/data/data_folder.h"

namespace flashshard::data {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

class PrepareFailure : public testing::Test {
 protected:
  PrepareFailure() { write_file(folder_ / "in", text_of(5'000)); }

  std::string prepare_error(std::vector<std::filesystem::path> inputs,
                            const std::filesystem::path& output, double fraction = 0.05,
                            int64_t shard_tokens = 1 << 20) {
    return error_of([&] {
      prepare({.inputs = std::move(inputs),
               .output = output,
               .validation_fraction = fraction,
               .shard_tokens = shard_tokens,
               .progress = {}});
    });
  }
  std::string input_error(const std::filesystem::path& input) {
    const std::string error = prepare_error({folder_ / "in", input}, folder_ / "out");
    EXPECT_FALSE(std::filesystem::exists(folder_ / "out")) << "bad input must leave no trace";
    return error;
  }

  DataFolder folder_;
};

TEST_F(PrepareFailure, MissingInput) {
  EXPECT_THAT(input_error(folder_ / "absent"),
              AllOf(StartsWith("3: cannot open file: No such file"), HasSubstr("absent")));
}

TEST_F(PrepareFailure, EmptyInput) {
  write_file(folder_ / "empty", "");
  EXPECT_THAT(input_error(folder_ / "empty"),
              AllOf(StartsWith("3: file is empty"), HasSubstr("empty")));
}

TEST_F(PrepareFailure, DirectoryAsInput) {
  EXPECT_THAT(input_error(folder_.path()), StartsWith("3: is a directory, not a file"));
}

TEST_F(PrepareFailure, PipeAsInputDoesNotWaitForItsWriter) {
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(input_error(folder_ / "pipe"), StartsWith("3: is not a regular file"));
}

TEST_F(PrepareFailure, NoInput) {
  EXPECT_THAT(prepare_error({}, folder_ / "out"), StartsWith("2: no input file given"));
}

TEST_F(PrepareFailure, OneFileTwiceUnderTwoNames) {
  std::filesystem::create_symlink(folder_ / "in", folder_ / "alias");
  EXPECT_THAT(input_error(folder_ / "alias"),
              AllOf(StartsWith("3: input is given twice"), HasSubstr("alias")));
}

TEST_F(PrepareFailure, TwoFilesWithOneText) {
  std::filesystem::copy_file(folder_ / "in", folder_ / "copy");
  EXPECT_THAT(prepare_error({folder_ / "in", folder_ / "copy"}, folder_ / "out"),
              AllOf(StartsWith("3: input holds the same text as"), HasSubstr("copy")));
  EXPECT_EQ(names_in(folder_ / "out"), std::vector<std::string>{});
  EXPECT_EQ(prepare_error({folder_ / "in", folder_ / "copy"}, folder_ / "out", 0),
            "nothing thrown");
}

TEST_F(PrepareFailure, InputThatChangesWhileItIsRead) {
  for (const size_t size : {size_t{4'000}, size_t{6'000}}) {
    write_file(folder_ / "a", text_of(3'000'000));
    write_file(folder_ / "b", text_of(5'000) + "b");
    const std::string error = error_of([&] {
      prepare({.inputs = {folder_ / "a", folder_ / "b"},
               .output = folder_ / "out",
               .progress = [&](int64_t, int64_t) {
                 std::filesystem::resize_file(folder_ / "b", size);
               }});
    });
    EXPECT_THAT(error, StartsWith("3: input changed while it was read"));
    EXPECT_EQ(names_in(folder_ / "out"), std::vector<std::string>{});
  }
}

TEST_F(PrepareFailure, TextTooShortToHoldOutAnything) {
  write_file(folder_ / "in", "a few words");
  EXPECT_THAT(prepare_error({folder_ / "in"}, folder_ / "out"),
              StartsWith("3: the text has 11 bytes: too few to hold out a fraction of 0.05"));
}

TEST_F(PrepareFailure, OptionsOutOfRange) {
  for (const double fraction : {-0.1, 0.51, std::nan("")}) {
    EXPECT_THAT(prepare_error({folder_ / "in"}, folder_ / "out", fraction),
                AllOf(StartsWith("2: validation fraction"), HasSubstr("between 0 and 0.5")));
  }
  EXPECT_THAT(prepare_error({folder_ / "in"}, folder_ / "out", 0.05, 0), StartsWith("2: tokens"));
  write_file(folder_ / "in", text_of(100'000));
  EXPECT_THAT(prepare_error({folder_ / "in"}, folder_ / "out", 0.05, 1),
              AllOf(StartsWith("2: "), HasSubstr("more than 100000 shards")));
}

struct ForeignEntry {
  const char* name;
  const char* content;  // nullptr: a folder
};
class ForeignFolder : public PrepareFailure, public testing::WithParamInterface<ForeignEntry> {};

TEST_P(ForeignFolder, IsLeftAlone) {
  std::filesystem::create_directory(folder_ / "out");
  const auto path = folder_ / "out" / GetParam().name;
  if (GetParam().content == nullptr) {
    std::filesystem::create_directory(path);
  } else {
    write_file(path, GetParam().content);
  }
  EXPECT_THAT(prepare_error({folder_ / "in"}, folder_ / "out"),
              AllOf(StartsWith("2: output folder holds `"), HasSubstr(GetParam().name)));
  EXPECT_EQ(names_in(folder_ / "out"), std::vector<std::string>{GetParam().name});
  if (GetParam().content != nullptr) {
    EXPECT_EQ(read_file(path), GetParam().content);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Entries, ForeignFolder,
    testing::Values(ForeignEntry{"notes.txt", "mine"}, ForeignEntry{"train-00000.tokens", "mine"},
                    ForeignEntry{"train-00000.tokens", ""}, ForeignEntry{"train-0000a.tokens", "x"},
                    ForeignEntry{"dataset.json", "{\"format\": \"other\"}"},
                    ForeignEntry{"dataset.json", "[1]"}, ForeignEntry{"dataset.json", "no json"},
                    ForeignEntry{"notes.txt.tmp", "mine"},
                    ForeignEntry{"train-00000.tokens", nullptr}));

TEST_F(PrepareFailure, OutputThatIsNoFolder) {
  EXPECT_THAT(prepare_error({folder_ / "in"}, folder_ / "in"), StartsWith("2: cannot "));
  EXPECT_THAT(prepare_error({folder_ / "in"}, folder_ / "in" / "out"), StartsWith("2: cannot "));
}

TEST_F(PrepareFailure, FolderThatAnotherPrepareWritesInto) {
  std::filesystem::create_directory(folder_ / "out");
  const FileDescriptor other(::open((folder_ / "out").c_str(), O_RDONLY | O_DIRECTORY));
  ASSERT_EQ(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
  EXPECT_THAT(prepare_error({folder_ / "in"}, folder_ / "out"),
              StartsWith("2: another `flashshard prepare` writes into this folder"));
}

TEST(WriteError, DistinguishesAFullDiskFromAFolderThatCannotBeWritten) {
  const auto error = [](int number) {
    return error_of([&] { throw_write_error(number, "write file", "a.tokens"); });
  };
  for (const int full : {ENOSPC, EDQUOT, EFBIG}) {
    EXPECT_THAT(error(full), AllOf(StartsWith("5: cannot write file: "),
                                   HasSubstr("(a.tokens). Hint: free space on this disk")));
  }
  for (const int other : {EACCES, EROFS, EIO}) {
    EXPECT_THAT(error(other), StartsWith("2: cannot write file: "));
  }
}

// A file size limit stands for a full disk: the same path through the code, without a disk to fill.
TEST_F(PrepareFailure, FullDiskLeavesTheEarlierDataSetWhole) {
  write_file(folder_ / "big", text_of(400'000));
  ASSERT_EQ(prepare_error({folder_ / "in"}, folder_ / "out"), "nothing thrown");
  const auto names = names_in(folder_ / "out");
  const std::string fingerprint = read_manifest(folder_ / "out").fingerprint();

  rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {.rlim_cur = 100'000, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string error = prepare_error({folder_ / "big"}, folder_ / "out");
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, handler);

  EXPECT_THAT(error, AllOf(StartsWith("5: cannot write file: File too large"),
                           HasSubstr("train-00000.tokens.tmp")));
  EXPECT_EQ(names_in(folder_ / "out"), names);
  EXPECT_EQ(TokenDataset::open(folder_ / "out", Split::kTrain).manifest().fingerprint(),
            fingerprint);
}

}  // namespace
}  // namespace flashshard::data
