// A save while training goes on: the same files as one that is waited for, whatever training does
// meanwhile; its failures reach all ranks at the next step.
#include "runtime/checkpoint/background_save.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstring>
#include <thread>
#include <tuple>

#include "runtime/checkpoint/folder.h"
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
using Progress = BackgroundSave::Progress;

constexpr std::chrono::seconds kLong{60};
constexpr size_t kWhole = size_t{1} << 20;  // more than any sample's shard
constexpr size_t kSmall = 512;              // a unit of the largest tensor and a little more

/// A rank in training: its state, and what saves it.
class SavedRank {
 public:
  SavedRank(Communicator& communicator, uint64_t seed, size_t staging,
            std::chrono::duration<double> deadline = kLong)
      : communicator_(communicator),
        state_(communicator.rank(), communicator.world_size(), seed),
        staging_(staging),
        save_(communicator,
              {state_.layout(), communicator.rank(), state_.mutable_views(), staging_, deadline}) {}

  void begin(const std::string& folder, int64_t step,
             FileSystem& file_system = posix_file_system()) {
    SaveRequest request;
    request.folder = folder;
    request.run = sample_run(step);
    request.file_system = &file_system;
    save_.begin(request);
  }
  /// An optimizer step as it would come: the last tensor's rows first, each as soon as it may.
  void update() {
    for (int t = state_.layout().tensors() - 1; t >= 0; --t) {
      save_.wait_until_copied(t, state_.layout().rows_of(t, communicator_.rank()));
      for (ShardTensorView& view : state_.mutable_views()) {
        if (view.tensor == t && !view.bytes.empty()) {
          std::memset(view.bytes.data(), 0xa5, view.bytes.size());
        }
      }
    }
  }
  /// What ranks do at a step boundary; true when the save has ended.
  bool boundary() {
    std::array<int64_t, 2> agreed = {save_.progress() == Progress::kWorking,
                                     save_.progress() == Progress::kFailed};
    communicator_.all_reduce(agreed, ReduceOp::kMax).wait("waiting for the boundary");
    if (agreed[0] != 0 && agreed[1] == 0) return false;
    return save_.advance(agreed[1] != 0).has_value();
  }
  BackgroundSave& save() { return save_; }
  SampleState& state() { return state_; }

 private:
  Communicator& communicator_;
  SampleState state_;
  std::vector<std::byte> staging_;
  BackgroundSave save_;
};

/// Every file of a checkpoint, by name.
std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const std::string& name : list(posix_file_system(), folder)) {
    files[name] = read_text(folder + "/" + name);
  }
  return files;
}

class InBackground : public ::testing::TestWithParam<std::tuple<int, size_t>> {
 protected:
  TemporaryFolder run_;
  std::string folder_ = run_ / "checkpoints";
};

TEST_P(InBackground, FilesAndManifestAreThoseOfASaveThatIsWaitedFor) {
  const auto [ranks, staging] = GetParam();
  ASSERT_THAT(save_on_ranks(run_ / "waited", 20, ranks), Each(""));
  FaultyFileSystem slow([](const std::string& call, const std::string&) {
    if (call == "write") std::this_thread::sleep_for(std::chrono::microseconds(50));
    return 0;
  });
  const auto errors = errors_of_ranks(ranks, [&, bytes = staging](Communicator& communicator) {
    SavedRank rank(communicator, 20, bytes);
    rank.begin(folder_, 20, slow);
    EXPECT_TRUE(rank.save().in_flight());
    rank.update();
    while (!rank.boundary()) std::this_thread::yield();
    EXPECT_FALSE(rank.save().in_flight());
  });
  EXPECT_THAT(errors, Each(""));
  EXPECT_EQ(files_of(folder_ + "/step-00000020"), files_of(run_ / "waited/step-00000020"));
  EXPECT_EQ(read_text(folder_ + "/latest"), "step-00000020\n");
  EXPECT_THAT(verify(folder_).findings, IsEmpty());
}

TEST_P(InBackground, OneSaveAfterAnotherHoldsWhatEachBegan) {
  const auto [ranks, staging] = GetParam();
  const auto errors = errors_of_ranks(ranks, [&, bytes = staging](Communicator& communicator) {
    SavedRank rank(communicator, 20, bytes);
    rank.begin(folder_, 20);
    rank.update();
    rank.save().finish();
    const SampleState next(communicator.rank(), communicator.world_size(), 30);
    for (size_t i = 0; i < next.memory().size(); ++i) {
      std::ranges::copy(next.memory()[i], rank.state().mutable_memory()[i].begin());
    }
    rank.begin(folder_, 30);
    rank.update();
    const SaveResult result = rank.save().finish();
    EXPECT_EQ(result.path, folder_ + "/step-00000030");
    const SampleState whole(0, 1, 30);
    EXPECT_EQ(result.hash, hash_of_views(whole.layout(), whole.views()));
  });
  EXPECT_THAT(errors, Each(""));
  for (const int64_t step : {20, 30}) {
    const SampleState whole(0, 1, static_cast<uint64_t>(step));
    EXPECT_EQ(hash(folder_ + "/" + step_name(step)), hash_of_views(whole.layout(), whole.views()));
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, InBackground,
                         ::testing::Combine(::testing::Values(1, 2, 4),
                                            ::testing::Values(kWhole, 4096, kSmall)));

/// Storage that takes nothing until it is let go.
class Gate {
 public:
  int operator()(const std::string& call, const std::string& path) {
    if (call != "write" || path.find("safetensors") == std::string::npos) return 0;
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
    return error_;
  }
  /// Every waiting write ends so, and those to come.
  void open(int error = 0) {
    const std::lock_guard lock(mutex_);
    open_ = true;
    error_ = error;
    changed_.notify_all();
  }
  void wait_for_a_write() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  bool open_ = false;
  int error_ = 0;
};

class BackgroundSaveTest : public ::testing::Test {
 protected:
  std::vector<std::string> names() const { return list(posix_file_system(), folder_); }

  TemporaryFolder run_;
  std::string folder_ = run_ / "checkpoints";
  Gate gate_;
  FaultyFileSystem gated_{std::ref(gate_)};
};

TEST_F(BackgroundSaveTest, WithStagingForAllNoUpdateWaitsForTheStorage) {
  const auto errors = errors_of_ranks(2, [&](Communicator& communicator) {
    SavedRank rank(communicator, 20, kWhole);
    rank.begin(folder_, 20, gated_);
    rank.update();
    EXPECT_FALSE(rank.boundary()) << "nothing is written yet";
    communicator.barrier().wait("waiting for the other rank");
    gate_.open();
    rank.save().finish();
  });
  EXPECT_THAT(errors, Each(""));
  EXPECT_EQ(hash(folder_),
            hash_of_views(SampleState(0, 1, 20).layout(), SampleState(0, 1, 20).views()));
}

TEST_F(BackgroundSaveTest, WithLessAnUpdateWaitsForItsOwnBytesOnly) {
  const auto errors = errors_of_ranks(1, [&](Communicator& communicator) {
    SavedRank rank(communicator, 20, 8192);
    rank.begin(folder_, 20, gated_);
    gate_.wait_for_a_write();
    // The weights fit into the staging, and so does the fp32 state of the vectors, which comes
    // next.
    for (const int t : {3, 4})
      rank.save().wait_until_copied(t, rank.state().layout().rows_of(t, 0));
    std::atomic<bool> updated = false;
    std::thread training([&] {
      rank.update();
      updated = true;
    });
    EXPECT_FALSE(updated);
    gate_.open();
    training.join();
    EXPECT_TRUE(updated);
    rank.save().finish();
  });
  EXPECT_THAT(errors, Each(""));
  const SampleState whole(0, 1, 20);
  EXPECT_EQ(hash(folder_), hash_of_views(whole.layout(), whole.views()));
}

TEST_F(BackgroundSaveTest, StorageThatTakesNothingEndsTheWaitAtItsDeadline) {
  const auto errors = errors_of_ranks(1, [&](Communicator& communicator) {
    SavedRank rank(communicator, 20, kSmall, std::chrono::milliseconds(50));
    rank.begin(folder_, 20, gated_);
    const auto expect_given_up = [&](const std::function<void()>& wait) {
      try {
        wait();
        ADD_FAILURE() << "did not wait";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::kCommunication);
        EXPECT_THAT(error.what(), AllOf(HasSubstr("has taken nothing of a checkpoint for 0.05"),
                                        HasSubstr("step-00000020"), HasSubstr("check the disk")));
      }
    };
    expect_given_up([&] { rank.update(); });
    expect_given_up([&] { rank.save().finish(); });
    gate_.open();
  });
  EXPECT_THAT(errors, Each(""));
  EXPECT_EQ(find_latest_complete(folder_), std::nullopt);
}

using BackgroundSaveDeathTest = BackgroundSaveTest;
TEST_F(BackgroundSaveDeathTest, AThreadThatNeverReturnsFromTheStorageDoesNotKeepTheProcess) {
  EXPECT_EXIT(errors_of_ranks(1,
                              [&](Communicator& communicator) {
                                SavedRank rank(communicator, 20, kWhole,
                                               std::chrono::milliseconds(50));
                                rank.begin(folder_, 20, gated_);
                              }),
              ::testing::ExitedWithCode(static_cast<int>(ExitCode::kCommunication)),
              "error: the storage has taken nothing of a checkpoint");
}

TEST_F(BackgroundSaveDeathTest, TheErrorThatEndsTheRunIsToldAndNotTheStorage) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(errors_of_ranks(1,
                              [&](Communicator& communicator) {
                                SavedRank rank(communicator, 20, kWhole, kLong);
                                rank.begin(folder_, 20, gated_);
                                rank.save().leave_with(ExitCode::kNonFinite, "gradients are bad");
                                rank.save().leave_with(ExitCode::kInternal, "a later one");
                              }),
              ::testing::ExitedWithCode(static_cast<int>(ExitCode::kNonFinite)),
              "error: gradients are bad");
}

struct FailingWrite {
  int rank;
  std::string call;
  std::string file;
};
class FailureInBackground : public ::testing::TestWithParam<FailingWrite> {};

TEST_P(FailureInBackground, ReachesAllRanksAtTheNextStepAndLeavesTheEarlierCheckpoint) {
  constexpr int kRanks = 3;
  TemporaryFolder run;
  const std::string folder = run / "checkpoints";
  ASSERT_THAT(save_on_ranks(folder, 10, kRanks), Each(""));
  FaultyFileSystem failing([&](const std::string& call, const std::string& path) {
    return call == GetParam().call && path.find(GetParam().file) != std::string::npos ? ENOSPC : 0;
  });
  std::vector<ExitCode> codes(kRanks, ExitCode::kDone);
  const auto errors = errors_of_ranks(kRanks, [&](Communicator& communicator) {
    const bool fails = communicator.rank() == GetParam().rank;
    SavedRank rank(communicator, 20, kSmall);
    try {
      rank.begin(folder, 20, fails ? failing : posix_file_system());
      rank.update();
      while (!rank.boundary()) std::this_thread::yield();
    } catch (const Error& error) {
      codes[static_cast<size_t>(communicator.rank())] = error.code();
      EXPECT_FALSE(rank.save().in_flight());
      EXPECT_EQ(rank.save().progress(), Progress::kAtRest);
      // The disk has space again: the next save is one like any other.
      rank.begin(folder, 30);
      rank.save().finish();
      throw;
    }
  });
  EXPECT_THAT(codes, Each(ExitCode::kOutOfSpace));
  EXPECT_THAT(errors, Each(AllOf(errors[0], HasSubstr("the checkpoint of step 20 was not saved"),
                                 HasSubstr("rank " + std::to_string(GetParam().rank) + " of 3"),
                                 HasSubstr("No space left on device"))));
  EXPECT_THAT(verify(folder + "/step-00000010").findings, IsEmpty());
  EXPECT_THAT(verify(folder + "/step-00000030").findings, IsEmpty());
  EXPECT_THAT(list(posix_file_system(), folder),
              ElementsAre("latest", "step-00000010", "step-00000030"));
}

INSTANTIATE_TEST_SUITE_P(Calls, FailureInBackground,
                         ::testing::Values(FailingWrite{0, "make_directory", "step-00000020.tmp-"},
                                           FailingWrite{1, "create", "weights-00001"},
                                           FailingWrite{2, "write", "weights-00002"},
                                           FailingWrite{0, "write", "state-00000"},
                                           FailingWrite{1, "sync", "state-00001"},
                                           FailingWrite{0, "write", "manifest.pb"},
                                           FailingWrite{0, "rename", "step-00000020.tmp-"}),
                         [](const auto& test_case) {
                           return test_case.param.call + std::to_string(test_case.index);
                         });

TEST_F(BackgroundSaveTest, AFailureDoesNotWaitForTheOthersToWriteAllTheyHave) {
  std::atomic<int> writes = 0;
  FaultyFileSystem counting([&](const std::string& call, const std::string& path) {
    if (call != "write") return 0;
    if (++writes > 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return gate_(call, path);
  });
  FaultyFileSystem failing(
      [](const std::string& call, const std::string&) { return call == "create" ? EIO : 0; });
  const auto errors = errors_of_ranks(2, [&](Communicator& communicator) {
    const bool fails = communicator.rank() == 1;
    SavedRank rank(communicator, 20, kWhole);
    rank.begin(folder_, 20, fails ? failing : counting);
    if (fails) {
      while (rank.save().progress() != Progress::kFailed) std::this_thread::yield();
    } else {
      gate_.wait_for_a_write();
    }
    communicator.barrier().wait("waiting for the failure");
    std::thread storage([&] {
      if (!fails) gate_.open();  // the write under way ends
    });
    EXPECT_THROW(rank.save().advance(true), Error);
    storage.join();
  });
  EXPECT_THAT(errors, Each(""));
  EXPECT_THAT(names(), IsEmpty());
  // Of more than twenty; when the others hear of it decides how many exactly.
  EXPECT_LT(writes, 10);
}

TEST_F(BackgroundSaveTest, TheSameStepSavedAgainIsKeptAsItWas) {
  std::vector<SaveResult> results(2);
  const auto errors = errors_of_ranks(2, [&](Communicator& communicator) {
    SavedRank rank(communicator, 20, kSmall);
    rank.begin(folder_, 20);
    EXPECT_FALSE(rank.save().finish().already_there);
    rank.begin(folder_, 20);
    rank.update();
    results[static_cast<size_t>(communicator.rank())] = rank.save().finish();
  });
  EXPECT_THAT(errors, Each(""));
  EXPECT_TRUE(results[0].already_there && results[1].already_there);
  EXPECT_THAT(results[0].warnings, IsEmpty());
  EXPECT_THAT(names(), ElementsAre("latest", "step-00000020"));
}

TEST_F(BackgroundSaveTest, ARunThatEndsInTheMiddleLeavesWhatTheNextStartRemoves) {
  ASSERT_THAT(save_on_ranks(folder_, 10, 2), Each(""));
  const auto errors = errors_of_ranks(2, [&](Communicator& communicator) {
    SavedRank rank(communicator, 20, kSmall);
    rank.begin(folder_, 20, gated_);
    gate_.wait_for_a_write();
    communicator.barrier().wait("waiting for the other rank");
    gate_.open();
  });
  EXPECT_THAT(errors, Each(""));
  EXPECT_EQ(find_latest_complete(folder_), folder_ + "/step-00000010");
  EXPECT_EQ(clean_up(folder_).size(), 1u);
  EXPECT_THAT(names(), ElementsAre("latest", "step-00000010"));
}

TEST_F(BackgroundSaveTest, StagingWithoutRoomForAUnitIsRefusedByTheTensorsName) {
  const auto errors =
      errors_of_ranks(1, [&](Communicator& communicator) { SavedRank(communicator, 20, 256); });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("checkpoint.staging_bytes"),
                                 HasSubstr("model.layers.0.odd.weight"), HasSubstr("320 bytes"),
                                 HasSubstr("checkpoint.async"))));
}

}  // namespace
}  // namespace flashshard::checkpoint
