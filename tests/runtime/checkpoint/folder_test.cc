// Which folders are checkpoints, which are leftovers, and which one is meant.
#include "runtime/checkpoint/folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/runtime/checkpoint/faulty_file_system.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

TEST(StepName, IsExactBothWays) {
  EXPECT_EQ(step_name(200), "step-00000200");
  EXPECT_EQ(step_name(123456789), "step-123456789");
  EXPECT_EQ(step_of_name("step-00000200"), 200);
  EXPECT_EQ(step_of_name("step-123456789"), 123456789);
  for (const char* wrong : {"step-200", "step-000000200", "step-0000020x", "step-", "step--0000001",
                            "step-00000200.tmp-0123456789abcdef", "Step-00000200", "step-+0000200",
                            "step-99999999999999999999", "latest", ""}) {
    EXPECT_EQ(step_of_name(wrong), std::nullopt) << wrong;
  }
}

TEST(FindLatest, TakesTheHighestStepOfAnExactName) {
  TemporaryFolder run;
  const std::string folder = run / "checkpoints";
  EXPECT_EQ(find_latest_complete(folder), std::nullopt);
  for (const int64_t step : {90, 100, 110}) ASSERT_THAT(save_on_ranks(folder, step, 1), Each(""));
  EXPECT_EQ(find_latest_complete(folder), folder + "/step-00000110");

  // An older one loses a byte of its manifest, 130 carries a wrong name, 140 is no folder.
  std::string manifest = read_text(folder + "/step-00000100/manifest.pb");
  write_text(folder + "/step-00000100/manifest.pb", manifest.substr(0, manifest.size() - 1));
  std::filesystem::copy(folder + "/step-00000090", folder + "/step-130");
  write_text(folder + "/step-00000140", "");
  EXPECT_EQ(find_latest_complete(folder), folder + "/step-00000110");
}

TEST(FindLatest, DoesNotGoBackBehindADamagedCheckpoint) {
  TemporaryFolder run;
  const std::string folder = run / "checkpoints", newest = folder + "/step-00000110";
  for (const int64_t step : {100, 110}) ASSERT_THAT(save_on_ranks(folder, step, 1), Each(""));
  const std::string manifest = read_text(newest + "/manifest.pb");
  const auto expect_refused = [&](const std::string& text, const std::string& hint) {
    try {
      find_latest_complete(folder);
      ADD_FAILURE() << "nothing thrown: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
      EXPECT_THAT(error.what(),
                  AllOf(HasSubstr(text), HasSubstr("step-00000110/manifest.pb"), HasSubstr(hint)));
    }
  };
  std::string changed = manifest;
  changed[changed.size() / 2] ^= 1;
  std::string newer = manifest;
  newer[7] = '2';  // of a magic that ends in its version
  for (const std::string& bytes : {changed, newer, manifest.substr(0, manifest.size() - 1)}) {
    write_text(newest + "/manifest.pb", bytes);
    expect_refused("damaged, or of another version", "to go back to step 100");
  }
  std::filesystem::remove(newest + "/manifest.pb");
  expect_refused("has no manifest", "to go back to step 100");
  std::filesystem::remove_all(folder + "/step-00000100");
  expect_refused("has no manifest", "move the folder away");
  std::filesystem::rename(newest, newest + ".aside");
  EXPECT_EQ(find_latest_complete(folder), std::nullopt);
}

TEST(FindLatest, TakesACheckpointThatARunSavesMeanwhileForNoDamage) {
  TemporaryFolder run;
  for (const int64_t step : {10, 20}) ASSERT_THAT(save_on_ranks(run.path(), step, 1), Each(""));
  std::filesystem::rename(run / "step-00000020", run / "later");
  // Right after the listing, and right before its only checkpoint is looked at, another one comes.
  FaultyFileSystem saving([&](const std::string& call, const std::string& path) {
    if (call == "open" && path.find("step-00000010") != std::string::npos) {
      std::error_code once;
      std::filesystem::rename(run / "later", run / "step-00000020", once);
    }
    return 0;
  });
  EXPECT_EQ(find_latest_complete(run.path(), saving), run / "step-00000010");
  EXPECT_EQ(find_latest_complete(run.path()), run / "step-00000020");
}

TEST(FindLatest, ADiskThatCannotAnswerIsAnErrorAndNotAnOlderCheckpoint) {
  TemporaryFolder run;
  for (const int64_t step : {100, 110}) save_on_ranks(run.path(), step, 1);
  FaultyFileSystem file_system([](const std::string& call, const std::string& path) {
    return call == "read" && path.find("110") != std::string::npos ? EIO : 0;
  });
  EXPECT_THROW(find_latest_complete(run.path(), file_system), Error);
}

TEST(Resolve, TakesAStepFolderACheckpointsFolderOrARunsFolder) {
  TemporaryFolder run;
  save_on_ranks(run / "checkpoints", 20, 1);
  const std::string step = run / "checkpoints/step-00000020";
  EXPECT_EQ(resolve(step), step);
  EXPECT_EQ(resolve(run / "checkpoints"), step);
  EXPECT_EQ(resolve(run.path()), step);
  // A renamed copy is meant by its own path; a step folder that lost its manifest too.
  std::filesystem::copy(step, run / "best");
  EXPECT_EQ(resolve(run / "best"), run / "best");
  std::filesystem::remove(step + "/manifest.pb");
  EXPECT_EQ(resolve(step), step);
}

TEST(Resolve, SaysWhatIsMissing) {
  TemporaryFolder run;
  const auto code_of = [](const std::string& argument) {
    try {
      resolve(argument);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("step folder, a checkpoints folder or a run's folder"));
      return error.code();
    }
    return ExitCode::kDone;
  };
  EXPECT_EQ(code_of(run / "nothing"), ExitCode::kUsage);
  EXPECT_EQ(code_of(run.path()), ExitCode::kCheckpoint);
  std::filesystem::create_directory(run / "checkpoints");
  EXPECT_EQ(code_of(run.path()), ExitCode::kCheckpoint);
}

TEST(CleanUp, RemovesLeftoversAndNothingElse) {
  TemporaryFolder run;
  const std::string folder = run / "checkpoints";
  EXPECT_THAT(clean_up(folder), IsEmpty());
  save_on_ranks(folder, 20, 1);
  const std::string id = "0123456789abcdef";
  for (const std::string& name :
       std::vector<std::string>{"step-00000030.tmp-" + id, "step-00000010.deleting-" + id,
                                std::string("step-00000010.bad"), "mine.tmp-" + id,
                                std::string("step-00000030.tmp-mine"), "latest.deleting-" + id}) {
    std::filesystem::create_directories(folder + "/" + name + "/inner");
    write_text(folder + "/" + name + "/inner/file", "x");
  }
  write_text(folder + "/latest.tmp-" + id, "step-00000020\n");
  // A link in a leftover is removed, what it points to stays.
  write_text(run / "precious", "x");
  std::filesystem::create_symlink(run / "precious", folder + "/step-00000030.tmp-" + id + "/link");

  EXPECT_THAT(clean_up(folder),
              UnorderedElementsAre("step-00000030.tmp-" + id, "step-00000010.deleting-" + id,
                                   "latest.tmp-" + id));
  EXPECT_THAT(list(posix_file_system(), folder),
              UnorderedElementsAre("step-00000020", "latest", "step-00000010.bad", "mine.tmp-" + id,
                                   "step-00000030.tmp-mine", "latest.deleting-" + id));
  EXPECT_EQ(read_text(run / "precious"), "x");
}

TEST(CleanUp, GoesOnWhereTheFolderAboveCannotBeSyncedAndStopsWhereTheDiskFails) {
  TemporaryFolder run;
  std::filesystem::create_directories(run / "mine/checkpoints");
  int error = EIO;
  FaultyFileSystem file_system([&](const std::string& call, const std::string& path) {
    return call == "sync_directory" && path == run.path() ? error : 0;
  });
  EXPECT_THROW(clean_up(run / "mine/checkpoints", file_system), Error);
  for (const int tolerated : {EACCES, EINVAL}) {
    error = tolerated;
    write_text(run / "mine/checkpoints/latest.tmp-0123456789abcdef", "");
    EXPECT_EQ(clean_up(run / "mine/checkpoints", file_system).size(), 1u);
  }
}

TEST(CleanUp, StopsWhereTheCheckpointsFolderHasNoFsync) {
  TemporaryFolder run;
  const std::string folder = run / "checkpoints";
  std::filesystem::create_directories(folder + "/step-00000010.deleting-0123456789abcdef");
  FaultyFileSystem file_system([&](const std::string& call, const std::string& path) {
    return call == "sync_directory" && path == folder ? EINVAL : 0;
  });
  EXPECT_THROW(clean_up(folder, file_system), Error);
}

TEST(CleanUp, NamesWhatItMayNotDelete) {
  TemporaryFolder run;
  write_text(run / "latest.tmp-0123456789abcdef", "");
  FaultyFileSystem file_system([](const std::string& call, const std::string&) {
    return call == "remove_file" ? EACCES : 0;
  });
  try {
    clean_up(run.path(), file_system);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_THAT(error.what(), HasSubstr("latest.tmp-0123456789abcdef"));
  }
}

}  // namespace
}  // namespace flashshard::checkpoint
