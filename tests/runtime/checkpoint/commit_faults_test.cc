// The commit: what a failure at any file system call leaves behind, and what all ranks hear of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

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

constexpr int kRanks = 3;

class Commit : public ::testing::Test {
 protected:
  std::vector<std::string> names() const { return list(posix_file_system(), folder_); }

  TemporaryFolder run_;
  std::string folder_ = run_ / "checkpoints";
};

/// Counts the calls that change something and fails one of them, or all from one on (a disk stays
/// full).
class FailingCall {
 public:
  FailingCall(int at, int error, bool stays) : at_(at), error_(error), stays_(stays) {}
  int operator()(const std::string& call, const std::string&) {
    static const std::set<std::string> changing = {
        "create", "write", "sync", "close", "rename", "make_directory", "sync_directory"};
    if (!changing.contains(call)) return 0;
    const int now = calls_++;
    const bool fails = now == at_ || (stays_ && now > at_);
    if (fails && failed_call_.empty()) failed_call_ = call;
    return fails ? error_ : 0;
  }
  int calls() const { return calls_; }
  const std::string& failed_call() const { return failed_call_; }

 private:
  int at_;
  int error_;
  bool stays_;
  int calls_ = 0;
  std::string failed_call_;
};

struct Fault {
  int rank;
  int error;
  bool stays;
  ExitCode code;
};
class FaultAtEveryCall : public ::testing::TestWithParam<Fault> {};

TEST_P(FaultAtEveryCall, LeavesThePreviousCheckpointWholeAndTellsAllRanks) {
  const Fault fault = GetParam();
  TemporaryFolder before;
  ASSERT_THAT(save_on_ranks(before.path(), 10, kRanks), Each(""));
  std::set<std::string> failed_calls;
  int failures = 0;
  for (int at = 0;; ++at) {
    TemporaryFolder run;
    const std::string folder = run / "checkpoints";
    std::filesystem::copy(before.path(), folder, std::filesystem::copy_options::recursive);

    FailingCall failing(at, fault.error, fault.stays);
    FaultyFileSystem faulty(std::ref(failing));
    std::vector<SaveResult> results(kRanks);
    const auto errors = errors_of_ranks(kRanks, [&](Communicator& communicator) {
      FileSystem& mine = communicator.rank() == fault.rank ? faulty : posix_file_system();
      try {
        results[static_cast<size_t>(communicator.rank())] =
            save_sample(folder, 20, communicator, 20, mine, 1);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), fault.code);
        throw;
      }
    });
    failed_calls.insert(failing.failed_call());

    const bool refused = !errors[0].empty();
    if (refused) {
      ++failures;
      EXPECT_THAT(errors,
                  Each(AllOf(errors[0], HasSubstr("the checkpoint of step 20 was not saved"),
                             HasSubstr("rank " + std::to_string(fault.rank) + " of 3"),
                             HasSubstr(folder))));
      // Only what was still to be done after the rename can fail and leave the new one complete.
      EXPECT_THAT(verify(folder + "/step-00000010").findings, IsEmpty()) << "call " << at;
    } else {
      EXPECT_THAT(verify(folder + "/step-00000020").findings, IsEmpty()) << "call " << at;
      const bool reached = at < failing.calls();
      EXPECT_EQ(!results[0].warnings.empty(), reached) << "call " << at;
    }
    // `latest` names a complete checkpoint, and the newest complete one is whole.
    const std::string latest = read_text(folder + "/latest");
    EXPECT_TRUE(is_complete(folder + "/" + latest.substr(0, latest.size() - 1))) << "call " << at;
    EXPECT_THAT(verify(folder).findings, IsEmpty()) << "call " << at;
    clean_up(folder);
    for (const std::string& name : list(posix_file_system(), folder)) {
      EXPECT_TRUE(name == "latest" || step_of_name(name)) << name;
    }
    if (at % 8 == 0) {  // the disk has space again: the same step is saved
      EXPECT_THAT(save_on_ranks(folder, 20, kRanks), Each(""));
      EXPECT_THAT(verify(folder + "/step-00000020").findings, IsEmpty());
    }
    if (at >= failing.calls()) break;
  }
  EXPECT_GT(failures, 5);
  EXPECT_TRUE(failed_calls.contains("write"));
  EXPECT_TRUE(failed_calls.contains("sync"));
  EXPECT_EQ(failed_calls.contains("rename"), fault.rank == 0);
}

INSTANTIATE_TEST_SUITE_P(Faults, FaultAtEveryCall,
                         ::testing::Values(Fault{0, ENOSPC, true, ExitCode::kOutOfSpace},
                                           Fault{1, ENOSPC, true, ExitCode::kOutOfSpace},
                                           Fault{0, EIO, false, ExitCode::kOutOfSpace},
                                           Fault{2, EROFS, false, ExitCode::kUsage}));

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

/// Ranks of one process, told that they run on several hosts.
class OnHosts final : public Communicator {
 public:
  OnHosts(Communicator& inner, std::vector<std::string> hosts)
      : inner_(inner), hosts_(std::move(hosts)) {}
  int rank() const override { return inner_.rank(); }
  int world_size() const override { return inner_.world_size(); }
  std::string_view transport() const override { return inner_.transport(); }
  std::string_view host(int rank) const override { return hosts_[static_cast<size_t>(rank)]; }
  void set_deadline(std::chrono::duration<double> deadline) override {
    inner_.set_deadline(deadline);
  }
  Pending all_to_all(std::span<const std::byte> send, std::span<const ByteRange> send_ranges,
                     std::span<std::byte> receive,
                     std::span<const ByteRange> receive_ranges) override {
    return inner_.all_to_all(send, send_ranges, receive, receive_ranges);
  }
  Pending all_gather(std::span<std::byte> buffer, std::span<const ByteRange> ranges) override {
    return inner_.all_gather(buffer, ranges);
  }
  Pending all_reduce(std::span<int64_t> values, ReduceOp op) override {
    return inner_.all_reduce(values, op);
  }
  Pending broadcast(std::span<std::byte> buffer, int root) override {
    return inner_.broadcast(buffer, root);
  }
  Pending barrier() override { return inner_.barrier(); }
  std::unique_ptr<Communicator> split(int color) override { return inner_.split(color); }
  void abort(ExitCode code) noexcept override { inner_.abort(code); }

 private:
  Communicator& inner_;
  std::vector<std::string> hosts_;
};

TEST_F(Commit, OneRankOfEveryOtherHostMakesTheFolderDurableThere) {
  std::filesystem::create_directory(folder_);
  std::vector<int> syncs(5);
  std::vector<int> syncs_of_final_folder(5);
  const auto errors = errors_of_ranks(5, [&](Communicator& communicator) {
    OnHosts hosted(communicator, {"a", "b", "b", "a", "c"});
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
  EXPECT_THAT(syncs_of_final_folder, ElementsAre(2, 0, 0, 0, 0))
      << "after the rename, after `latest`";
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
  EXPECT_THAT(calls, ElementsAre("sync weights-00000.safetensors", "sync state-00000.safetensors",
                                 "sync manifest.pb", "sync manifest.json",
                                 "sync_directory step-00000020.tmp-", "rename step-00000020.tmp-",
                                 "sync_directory checkpoints", "sync latest.tmp-",
                                 "rename latest.tmp-", "sync_directory checkpoints"));
}

}  // namespace
}  // namespace flashshard::checkpoint
