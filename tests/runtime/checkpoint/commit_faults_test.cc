// The commit: what it does with what is there, in which order, and what all ranks hear of a failure
// (fault_at_every_call_test.cc fails every call).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/verify.h"
#include "tests/runtime/checkpoint/faulty_file_system.h"
#include "tests/runtime/checkpoint/ranks_on_hosts.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kRanks = 3;

class Commit : public ::testing::Test {
 protected:
  std::vector<std::string> names() const { return list(posix_file_system(), folder_); }

  TemporaryFolder run_;
  std::string folder_ = run_ / "checkpoints";
};

TEST_F(Commit, TheCodeOfTheFailingRankIsThatOfAllRanks) {
  FaultyFileSystem full(
      [](const std::string& call, const std::string&) { return call == "write" ? ENOSPC : 0; });
  std::vector<ExitCode> codes(kRanks, ExitCode::kDone);
  errors_of_ranks(kRanks, [&](Communicator& communicator) {
    try {
      save_sample(folder_, 20, communicator, 20,
                  communicator.rank() == 1 ? full : posix_file_system());
    } catch (const Error& error) {
      codes[static_cast<size_t>(communicator.rank())] = error.code();
      EXPECT_THAT(error.what(),
                  AllOf(HasSubstr("rank 1 of 3"), HasSubstr("No space left on device"),
                        HasSubstr("weights-00001.safetensors"), HasSubstr("free space")));
    }
  });
  EXPECT_THAT(codes, Each(ExitCode::kOutOfSpace));
  EXPECT_THAT(names(), IsEmpty()) << "the failed attempt gives its space back";
}

TEST_F(Commit, SeveralFailingRanksAreCounted) {
  FaultyFileSystem full(
      [](const std::string& call, const std::string&) { return call == "create" ? EACCES : 0; });
  const auto errors = errors_of_ranks(kRanks, [&](Communicator& communicator) {
    save_sample(folder_, 20, communicator, 20,
                communicator.rank() > 0 ? full : posix_file_system());
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("rank 1 of 3"), HasSubstr("(and 1 more)"))));
}

TEST_F(Commit, AFileThatRank0CannotSeeIsRefused) {
  FaultyFileSystem blind([](const std::string& call, const std::string& path) {
    return call == "open" && path.ends_with("state-00002.safetensors") ? ENOENT : 0;
  });
  const auto errors = errors_of_ranks(kRanks, [&](Communicator& communicator) {
    save_sample(folder_, 20, communicator, 20,
                communicator.rank() == 0 ? blind : posix_file_system());
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("rank 0 of 3"), HasSubstr("state-00002.safetensors"))));
  EXPECT_EQ(find_latest_complete(folder_), std::nullopt);
}

TEST_F(Commit, AWholeCheckpointOfTheSameStepStays) {
  ASSERT_THAT(save_on_ranks(folder_, 20, 2, 1), Each(""));
  const LogicalHash first = hash(folder_);
  std::vector<SaveResult> results(2);
  const auto again = [&](uint64_t seed) {
    return errors_of_ranks(2, [&](Communicator& communicator) {
      results[static_cast<size_t>(communicator.rank())] =
          save_sample(folder_, 20, communicator, seed);
    });
  };
  EXPECT_THAT(again(1), Each(""));
  EXPECT_TRUE(results[0].already_there && results[1].already_there);
  EXPECT_THAT(results[0].warnings, IsEmpty());
  EXPECT_THAT(again(2), Each(""));
  EXPECT_THAT(results[0].warnings, ElementsAre(HasSubstr("with other contents")));
  EXPECT_EQ(hash(folder_), first);
  EXPECT_THAT(names(), ElementsAre("latest", "step-00000020"));
}

TEST_F(Commit, ADamagedCheckpointOfTheSameStepIsMovedAside) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    ASSERT_THAT(save_on_ranks(folder_, 20, 2), Each(""));
    write_text(folder_ + "/step-00000020/weights-00001.safetensors", "damage");
    std::vector<std::string> warnings;
    EXPECT_THAT(errors_of_ranks(2,
                                [&](Communicator& communicator) {
                                  auto result = save_sample(folder_, 20, communicator, 20);
                                  EXPECT_FALSE(result.already_there);
                                  if (communicator.rank() == 0) warnings = result.warnings;
                                }),
                Each(""));
    EXPECT_THAT(warnings, ElementsAre(AllOf(HasSubstr("moved aside"), HasSubstr("weights-00001"))));
    EXPECT_THAT(verify(folder_).findings, IsEmpty());
  }
  EXPECT_THAT(names(),
              ElementsAre("latest", "step-00000020", "step-00000020.bad", "step-00000020.bad-2"));
}

TEST_F(Commit, KeepLastCountsCompleteCheckpointsOnly) {
  for (const int64_t step : {10, 20, 30}) ASSERT_THAT(save_on_ranks(folder_, step, 1), Each(""));
  write_text(folder_ + "/step-00000020/manifest.pb", "damage");
  ASSERT_THAT(save_on_ranks(folder_, 40, 1, 0, 2), Each(""));
  EXPECT_THAT(names(), ElementsAre("latest", "step-00000020", "step-00000030", "step-00000040"));
  ASSERT_THAT(save_on_ranks(folder_, 50, 1, 0, 1), Each(""));
  EXPECT_THAT(names(), ElementsAre("latest", "step-00000020", "step-00000050"));
}

TEST_F(Commit, KeepEveryKeepsItsStepsBesideTheNewest) {
  for (const int64_t step : {10, 20, 30, 40, 50}) {
    EXPECT_THAT(errors_of_ranks(1,
                                [&](Communicator& communicator) {
                                  const SampleState state(0, 1, 1);
                                  save({.folder = folder_,
                                        .run = sample_run(step),
                                        .layout = &state.layout(),
                                        .views = state.views(),
                                        .keep_last = 2,
                                        .keep_every = 20},
                                       communicator);
                                }),
                Each(""));
  }
  EXPECT_THAT(names(), ElementsAre("latest", "step-00000020", "step-00000040", "step-00000050"))
      << "the two newest, and the multiples of 20";
}

TEST_F(Commit, WhatWasJustSavedIsNeverDeleted) {
  for (const int64_t step : {30, 40}) ASSERT_THAT(save_on_ranks(folder_, step, 1), Each(""));
  // A run resumed from an older checkpoint saves an earlier step than those beside it.
  ASSERT_THAT(save_on_ranks(folder_, 20, 1, 0, 1), Each(""));
  EXPECT_THAT(names(), ElementsAre("latest", "step-00000020"));
}

TEST_F(Commit, LeftoversOfACrashDoNotDisturbTheNextSave) {
  ASSERT_THAT(save_on_ranks(folder_, 10, 2), Each(""));
  // What a crash between two calls leaves: a folder half written, one half deleted, `latest` half
  // made.
  std::filesystem::copy(folder_ + "/step-00000010",
                        folder_ + "/step-00000020.tmp-0123456789abcdef");
  std::filesystem::remove(folder_ + "/step-00000020.tmp-0123456789abcdef/manifest.json");
  std::filesystem::create_directory(folder_ + "/step-00000005.deleting-0123456789abcdef");
  write_text(folder_ + "/latest.tmp-0123456789abcdef", "step");
  EXPECT_EQ(find_latest_complete(folder_), folder_ + "/step-00000010");
  EXPECT_THAT(save_on_ranks(folder_, 20, 2), Each(""));
  EXPECT_EQ(find_latest_complete(folder_), folder_ + "/step-00000020");
  EXPECT_EQ(clean_up(folder_).size(), 3u);
  EXPECT_THAT(names(), ElementsAre("latest", "step-00000010", "step-00000020"));
}

TEST_F(Commit, OneRankOfEveryOtherHostMakesTheFolderDurableThere) {
  std::filesystem::create_directory(folder_);
  std::vector<int> syncs(5);
  std::vector<int> syncs_of_final_folder(5);
  const auto errors = errors_of_ranks(5, [&](Communicator& communicator) {
    RanksOnHosts hosted(communicator, {"a", "b", "b", "a", "c"});
    const auto r = static_cast<size_t>(communicator.rank());
    FaultyFileSystem recording([&](const std::string& call, const std::string& path) {
      if (call == "sync_directory") {
        ++(path.find(".tmp-") != std::string::npos ? syncs : syncs_of_final_folder)[r];
      }
      return 0;
    });
    save_sample(folder_, 20, hosted, 20, recording);
  });
  EXPECT_THAT(errors, Each(""));
  EXPECT_THAT(syncs, ElementsAre(1, 1, 0, 0, 1));
  EXPECT_THAT(syncs_of_final_folder, ElementsAre(1, 0, 0, 0, 0)) << "after the rename";
}

TEST_F(Commit, EverythingIsDurableBeforeTheRenameAndTheRenameBeforeTheReport) {
  std::filesystem::create_directory(folder_);
  std::vector<std::string> calls;
  FaultyFileSystem recording([&](const std::string& call, const std::string& path) {
    if (call == "sync" || call == "sync_directory" || call == "rename") {
      const std::string name = name_of_path(path);
      const bool has_id = name.find(".tmp-") != std::string::npos;
      calls.push_back(call + " " + (has_id ? name.substr(0, name.size() - 16) : name));
    }
    return 0;
  });
  EXPECT_THAT(errors_of_ranks(1,
                              [&](Communicator& communicator) {
                                save_sample(folder_, 20, communicator, 20, recording);
                              }),
              Each(""));
  EXPECT_THAT(calls,
              ElementsAre("sync weights-00000.safetensors", "sync state-00000.safetensors",
                          "sync manifest.pb", "sync manifest.json",
                          "sync_directory step-00000020.tmp-", "rename step-00000020.tmp-",
                          "sync_directory checkpoints", "sync latest.tmp-", "rename latest.tmp-"));
}

}  // namespace
}  // namespace flashshard::checkpoint
