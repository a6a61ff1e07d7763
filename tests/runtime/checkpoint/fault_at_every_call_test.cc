// A fault at every call of a save in turn, on every rank: an error that stays or passes, an answer
// that got lost, half of the bytes, the end of the rank or of all. The earlier checkpoints stay,
// nothing that was reported is missing, all ranks end and tell the same, and the run goes on. The
// same of a save beside training and of one under zstd.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <ostream>
#include <set>

#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/verify.h"
#include "tests/runtime/checkpoint/faulty_file_system.h"
#include "tests/runtime/checkpoint/power_loss.h"
#include "tests/runtime/checkpoint/sample_state.h"
#include "tests/runtime/checkpoint/simulated_storage.h"
#include "tests/sanitizers.h"

namespace flashshard::checkpoint {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kFolder = "/run/checkpoints";

// The end of a rank: nothing catches it, nothing cleans up.
struct Killed {};
constexpr int kEndOfThisRank = -100;
constexpr int kEndOfAllRanks = -101;

struct Fault {
  const char* name;
  int what;                         // an errno, or one of the above
  bool stays;                       // from that call on
  ExitCode code = ExitCode::kDone;  // of a save that it prevents
  enum : uint8_t {
    kAnyCall,
    kChanges,
    kTakesSpace,
    kTransfers
  } of = kAnyCall;  // calls that can fail like this
};
void PrintTo(const Fault& fault, std::ostream* out) { *out << fault.name; }

constexpr std::array kFaults = {
    Fault{"DiskFull", ENOSPC, true, ExitCode::kOutOfSpace, Fault::kTakesSpace},
    Fault{"QuotaReached", EDQUOT, true, ExitCode::kOutOfSpace, Fault::kTakesSpace},
    Fault{"DeviceFailsOnce", EIO, false, ExitCode::kOutOfSpace},
    Fault{"DeviceFailsForGood", EIO, true, ExitCode::kOutOfSpace},
    Fault{"AnswerIsLost", FaultyFileSystem::kDoneButEIO, false, ExitCode::kOutOfSpace,
          Fault::kChanges},
    Fault{"ReadOnly", EROFS, true, ExitCode::kUsage, Fault::kChanges},
    Fault{"HalfOfTheBytes", FaultyFileSystem::kHalfOfTheBytes, false, ExitCode::kDone,
          Fault::kTransfers},
    Fault{"EndOfThisRank", kEndOfThisRank, true},
    Fault{"EndOfAllRanks", kEndOfAllRanks, true}};

bool can_fail(const std::string& call, const Fault& fault) {
  static const std::set<std::string> takes_space = {
      "create", "write", "sync", "close", "rename", "make_directory", "sync_directory"};
  switch (fault.of) {
    case Fault::kTransfers:
      return call == "write" || call == "read";
    case Fault::kTakesSpace:
      return takes_space.contains(call);
    case Fault::kChanges:
      return takes_space.contains(call) || call.starts_with("remove");
    default:
      return true;
  }
}

/// Brings the fault to call `at` of a rank (-1: to none).
class FaultyCalls {
 public:
  FaultyCalls(const Fault& fault, int at, std::atomic<bool>& all_ended)
      : fault_(fault), at_(at), all_ended_(all_ended) {}

  int operator()(const std::string& call) {
    if (all_ended_ || ended_) return EIO;
    const int now = static_cast<int>(calls_.size());
    calls_.push_back(call);
    const bool is_due = at_ >= 0 && (now == at_ || (fault_.stays && now > at_));
    if (!is_due || !can_fail(call, fault_)) return 0;
    if (fault_.what == kEndOfThisRank) return end_of_rank(call);
    if (fault_.what != kEndOfAllRanks) return fault_.what;
    all_ended_ = true;
    return EIO;
  }
  const std::vector<std::string>& calls() const { return calls_; }

 private:
  /// A file is closed by a destructor, which the end cannot leave: it comes with the next call.
  int end_of_rank(const std::string& call) {
    if (call == "close_read") return 0;
    ended_ = true;
    throw Killed();
  }

  Fault fault_;
  int at_;
  std::atomic<bool>& all_ended_;
  bool ended_ = false;
  std::vector<std::string> calls_;
};

/// Where a save of step 30 stands that keeps two: steps 10 and 20 are there, `latest` names 20.
SimulatedStorage storage_with_two_checkpoints(int ranks) {
  SimulatedStorage storage;
  HostFileSystem(storage).make_directory("/run");
  for (const int64_t step : {10, 20}) {
    EXPECT_THAT(errors_of_ranks(ranks,
                                [&](Communicator& communicator) {
                                  HostFileSystem file_system(storage, 0, communicator.rank());
                                  save_sample(kFolder, step, communicator,
                                              static_cast<uint64_t>(step), file_system);
                                }),
                Each(""));
  }
  return storage;
}

constexpr std::array kModes = {"Waited", "BesideTraining", "UnderZstd"};

struct Attempt {
  std::vector<std::string> errors;
  std::vector<ExitCode> codes;
  std::vector<std::string> warnings;  // of rank 0
  std::vector<std::string> calls;     // of the faulty rank
};

/// Saves step 30, with a fault at call `at` of a rank (-1: none).
Attempt save_with_fault(SimulatedStorage& storage, int ranks, int faulty_rank, const Fault& fault,
                        int at, SaveMode mode = SaveMode::kWaited) {
  Attempt attempt;
  attempt.codes.resize(static_cast<size_t>(ranks));
  std::atomic<bool> all_ended = false;
  FaultyCalls faulty(fault, at, all_ended);
  attempt.errors = errors_of_ranks(ranks, [&](Communicator& communicator) {
    const int rank = communicator.rank();
    HostFileSystem host(storage, 0, rank);
    FaultyFileSystem file_system(
        [&](const std::string& call, const std::string&) {
          if (rank == faulty_rank) return faulty(call);
          return all_ended ? EIO : 0;
        },
        host);
    try {
      const auto result = save_sample(mode, kFolder, 30, communicator, 30, file_system, 2);
      if (rank == 0) attempt.warnings = result.warnings;
    } catch (const Killed&) {
      communicator.abort(ExitCode::kCommunication);  // as mpirun ends the others
      throw std::runtime_error("killed");
    } catch (const Error& error) {
      attempt.codes[static_cast<size_t>(rank)] = error.code();
      throw;
    }
  });
  attempt.calls = faulty.calls();
  return attempt;
}

Operation report_of(int64_t step) {
  Operation report;
  report.step = step;
  return report;
}

/// Under sanitizers one call in five is taken, and the last eight, which reach past the commit.
/// Calls come in twos and fours (create, write, sync, close): a stride of five meets all kinds.
bool is_left_out(size_t call, size_t calls) {
  return flashshard::test::kUnderSanitizers && call % 5 != 0 && call + 8 < calls;
}

class FaultAtEveryCall : public ::testing::TestWithParam<std::tuple<int, Fault, SaveMode>> {
 protected:
  FaultAtEveryCall()
      : storage_(storage_with_two_checkpoints(ranks_)), promises_(contents_of_steps({10, 20, 30})) {
    for (const int64_t step : {10, 20}) promises_.note(report_of(step));
    EXPECT_FALSE(promises_.broken_on(storage_.disk(), kFolder));
  }

  void expect_one_error(const Attempt& attempt, int rank) const {
    EXPECT_THAT(attempt.codes, Each(fault_.code));
    EXPECT_THAT(attempt.errors,
                Each(AllOf(attempt.errors[0], HasSubstr("the checkpoint of step 30 was not saved"),
                           HasSubstr(kFolder))));
    if (ranks_ > 1) {
      EXPECT_THAT(attempt.errors[0], HasSubstr(fmt::format("rank {} of {}", rank, ranks_)));
    }
  }

  void expect_promises(const Attempt& attempt, const SimulatedStorage& storage) const {
    Promises promises = promises_;
    for (const Operation& operation : storage.log()) promises.note(operation);
    // Where one rank was told that it is saved, it is.
    if (std::ranges::count(attempt.errors, "") > 0) promises.note(report_of(30));
    const auto broken = promises.broken_on(storage.disk(), kFolder);
    EXPECT_FALSE(broken) << broken->what;
    const auto refused = refused_start(storage.disk(), kFolder);
    EXPECT_FALSE(refused) << *refused;
  }

  /// The next start cleans up, and the step is saved.
  static void expect_that_the_run_goes_on(SimulatedStorage& storage) {
    static const SampleState state(0, 1, 30);
    HostFileSystem file_system(storage);
    clean_up(kFolder, file_system);
    for (const std::string& name : list(file_system, kFolder)) {
      EXPECT_TRUE(name == "latest" || step_of_name(name)) << name;
    }
    const auto alone = std::move(make_thread_communicators(1)[0]);
    save({.folder = kFolder,
          .run = sample_run(30),
          .layout = &state.layout(),
          .views = state.views(),
          .keep_last = 2,
          .file_system = &file_system},
         *alone);
    EXPECT_THAT(list(file_system, kFolder),
                ElementsAre("latest", "step-00000020", "step-00000030"));
    EXPECT_EQ(read_file(file_system, kFolder + "/latest", 100), "step-00000030\n");
    EXPECT_THAT(verify_folder(kFolder + "/step-00000030", file_system).findings, IsEmpty());
  }

  int ranks_ = std::get<0>(GetParam());
  Fault fault_ = std::get<1>(GetParam());
  SaveMode mode_ = std::get<2>(GetParam());
  SimulatedStorage storage_;
  Promises promises_;
};

TEST_P(FaultAtEveryCall, LeavesEarlierCheckpointsWholeAndTellsAllRanks) {
  int faults = 0;
  int done = 0;
  for (int rank = 0; rank < ranks_; ++rank) {
    SimulatedStorage undisturbed(storage_);
    const auto calls = save_with_fault(undisturbed, ranks_, rank, fault_, -1, mode_).calls;
    for (size_t at = 0; at < calls.size(); ++at) {
      if (!can_fail(calls[at], fault_) || is_left_out(at, calls.size())) continue;
      SCOPED_TRACE(fmt::format("rank {}, call {}: {}", rank, at, calls[at]));
      SimulatedStorage storage(storage_);
      const Attempt attempt =
          save_with_fault(storage, ranks_, rank, fault_, static_cast<int>(at), mode_);
      ++faults;
      const bool is_end = fault_.what == kEndOfThisRank || fault_.what == kEndOfAllRanks;
      const bool is_harmless =
          fault_.of == Fault::kTransfers || (calls[at] == "close_read" && !fault_.stays);
      if (storage.disk().find(kFolder + "/step-00000030") != kNoNode) ++done;
      if (!is_end && !attempt.errors[0].empty()) {
        expect_one_error(attempt, rank);
        EXPECT_FALSE(is_harmless);
      } else if (!is_end) {
        EXPECT_THAT(attempt.errors, Each(""));
        EXPECT_EQ(attempt.warnings.empty(), is_harmless);
      }
      expect_promises(attempt, storage);
      expect_that_the_run_goes_on(storage);
      if (HasFailure()) return;
    }
  }
  fmt::print("{} faults, {} of them after the save was done\n", faults, done);
  EXPECT_GT(done, 0);
  EXPECT_EQ(done == faults, fault_.of == Fault::kTransfers);
}

const auto name_of_case = [](const auto& parameter) {
  const auto [ranks, fault, mode] = parameter.param;
  return fmt::format("{}On{}Ranks{}", fault.name, ranks,
                     mode == SaveMode::kWaited ? "" : kModes[static_cast<size_t>(mode)]);
};
INSTANTIATE_TEST_SUITE_P(Saves, FaultAtEveryCall,
                         ::testing::Combine(::testing::Values(1, 2, 4),
                                            ::testing::ValuesIn(kFaults),
                                            ::testing::Values(SaveMode::kWaited)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(UnderZstd, FaultAtEveryCall,
                         ::testing::Combine(::testing::Values(2), ::testing::ValuesIn(kFaults),
                                            ::testing::Values(SaveMode::kUnderZstd)),
                         name_of_case);
// The end of one rank alone is not thrown through the thread that writes; that of all is silence.
INSTANTIATE_TEST_SUITE_P(BesideTraining, FaultAtEveryCall,
                         ::testing::Combine(::testing::Values(1, 2),
                                            ::testing::Values(kFaults[0], kFaults[1], kFaults[2],
                                                              kFaults[3], kFaults[4], kFaults[5],
                                                              kFaults[6], kFaults[8]),
                                            ::testing::Values(SaveMode::kBesideTraining)),
                         name_of_case);

class FaultOfASaveThatFindsItsStep : public ::testing::TestWithParam<std::tuple<Fault, bool>> {};

TEST_P(FaultOfASaveThatFindsItsStep, AtAnyCallLosesNothing) {
  const auto [fault, is_whole] = GetParam();
  const SimulatedStorage before = [&, whole = is_whole] {
    SimulatedStorage storage;
    HostFileSystem file_system(storage);
    const auto alone = std::move(make_thread_communicators(1)[0]);
    for (const int64_t step : {30, 10, 20}) {
      save_sample(kFolder, step, *alone, static_cast<uint64_t>(step), file_system);
    }
    Disk disk = storage.disk();
    std::string& manifest = disk.node(disk.find(kFolder + "/step-00000030/manifest.pb")).current;
    if (!whole) manifest.back() = static_cast<char>(~manifest.back());
    return SimulatedStorage(std::move(disk));
  }();
  Promises promised(contents_of_steps({10, 20, 30}));
  for (const int64_t step : {10, 20, 30}) {
    if (step != 30 || is_whole) promised.note(report_of(step));
  }
  SimulatedStorage undisturbed(before);
  const auto calls = save_with_fault(undisturbed, 1, 0, fault, -1).calls;
  for (size_t at = 0; at < calls.size(); ++at) {
    if (is_left_out(at, calls.size())) continue;
    SCOPED_TRACE(fmt::format("call {}: {}", at, calls[at]));
    SimulatedStorage storage(before);
    const Attempt attempt = save_with_fault(storage, 1, 0, fault, static_cast<int>(at));
    Promises promises = promised;
    for (const Operation& operation : storage.log()) promises.note(operation);
    if (attempt.errors[0].empty()) promises.note(report_of(30));
    const auto broken = promises.broken_on(storage.disk(), kFolder);
    ASSERT_FALSE(broken) << broken->what;

    HostFileSystem file_system(storage);
    clean_up(kFolder, file_system);
    EXPECT_EQ(save_with_fault(storage, 1, 0, fault, -1).errors[0], "");
    for (const Operation& operation : storage.log()) promises.note(operation);
    promises.note(report_of(30));
    EXPECT_FALSE(promises.broken_on(storage.disk(), kFolder));
  }
}

INSTANTIATE_TEST_SUITE_P(Saves, FaultOfASaveThatFindsItsStep,
                         ::testing::Combine(::testing::Values(kFaults[2], kFaults[3], kFaults[8]),
                                            ::testing::Bool()),
                         [](const auto& parameter) {
                           return fmt::format("{}{}", std::get<0>(parameter.param).name,
                                              std::get<1>(parameter.param) ? "Whole" : "Damaged");
                         });

TEST(AFullDisk, GetsTheSpaceOfTheAttemptBack) {
  const SimulatedStorage before = storage_with_two_checkpoints(2);
  const Fault& full = kFaults[0];
  for (int at = 0; at < 20; ++at) {
    SimulatedStorage storage(before);
    if (save_with_fault(storage, 2, 1, full, at).errors[0].empty()) continue;
    HostFileSystem file_system(storage);
    EXPECT_THAT(list(file_system, kFolder),
                ElementsAre("latest", "step-00000010", "step-00000020"));
  }
}

/// Loads step 20 on three ranks, with a fault at call `at` of one (-1: none).
Attempt load_with_fault(SimulatedStorage& storage, int faulty_rank, const Fault& fault, int at) {
  Attempt attempt;
  attempt.codes.resize(3);
  std::atomic<bool> never = false;
  FaultyCalls faulty(fault, at, never);
  attempt.errors = errors_of_ranks(3, [&](Communicator& communicator) {
    const int rank = communicator.rank();
    HostFileSystem host(storage, 0, rank);
    FaultyFileSystem file_system(
        [&](const std::string& call, const std::string&) {
          return rank == faulty_rank ? faulty(call) : 0;
        },
        host);
    const SampleState state(rank, 3, 0);
    try {
      load({kFolder + "/step-00000020", &state.layout(), state.views(), {}, &file_system},
           communicator);
    } catch (const Error& error) {
      attempt.codes[static_cast<size_t>(rank)] = error.code();
      throw;
    }
  });
  attempt.calls = faulty.calls();
  return attempt;
}

class FaultOfALoad : public ::testing::TestWithParam<Fault> {};

TEST_P(FaultOfALoad, AtAnyCallIsToldToAllRanksAndChangesNothing) {
  SimulatedStorage storage = storage_with_two_checkpoints(2);
  const std::string before = signature(storage.disk());
  for (int rank = 0; rank < 3; ++rank) {
    const auto calls = load_with_fault(storage, rank, GetParam(), -1).calls;
    for (size_t at = 0; at < calls.size(); ++at) {
      const Attempt attempt = load_with_fault(storage, rank, GetParam(), static_cast<int>(at));
      SCOPED_TRACE(fmt::format("rank {}, call {}: {}", rank, at, calls[at]));
      if (calls[at] == "close_read") {
        EXPECT_THAT(attempt.errors, Each(""));
        continue;
      }
      EXPECT_THAT(attempt.codes, Each(GetParam().code));
      EXPECT_THAT(attempt.errors,
                  Each(AllOf(attempt.errors[0], HasSubstr("cannot resume from " + kFolder),
                             HasSubstr(fmt::format("rank {} of 3", rank)))));
    }
  }
  EXPECT_EQ(signature(storage.disk()), before);
}

INSTANTIATE_TEST_SUITE_P(Loads, FaultOfALoad,
                         ::testing::Values(Fault{"Device", EIO, false, ExitCode::kCheckpoint},
                                           Fault{"Permission", EACCES, false, ExitCode::kUsage}),
                         [](const auto& parameter) { return parameter.param.name; });

TEST(CleaningUp, ThatAnyCallFailsIsAnErrorOrDoneAndTheNextDoesTheRest) {
  SimulatedStorage killed = storage_with_two_checkpoints(1);
  // Two runs that ended between a deletion's rename and its end, and within a save.
  HostFileSystem host(killed);
  host.rename(kFolder + "/step-00000010", kFolder + "/step-00000010.deleting-0123456789abcdef");
  host.make_directory(kFolder + "/step-00000030.tmp-0123456789abcdef");
  write_file(host, kFolder + "/step-00000030.tmp-0123456789abcdef/manifest.pb", "half");
  write_file(host, kFolder + "/latest.tmp-0123456789abcdef", "st");
  const Fault fault{"", EIO, false};
  std::vector<std::string> calls = {""};
  for (int at = -1; at < static_cast<int>(calls.size()); ++at) {
    SimulatedStorage storage(killed);
    HostFileSystem real(storage);
    std::atomic<bool> never = false;
    FaultyCalls faulty(fault, at, never);
    FaultyFileSystem file_system(
        [&](const std::string& call, const std::string&) { return faulty(call); }, real);
    std::string error;
    try {
      clean_up(kFolder, file_system);
    } catch (const Error& failure) {
      error = failure.what();
    }
    if (at < 0) calls = faulty.calls();
    EXPECT_EQ(error.empty(), at < 0) << at;
    EXPECT_THAT(error, AnyOf(IsEmpty(), HasSubstr("(/")));
    clean_up(kFolder, real);
    EXPECT_THAT(list(real, kFolder), ElementsAre("latest", "step-00000020"));
    EXPECT_THAT(verify_folder(kFolder + "/step-00000020", real).findings, IsEmpty());
  }
  EXPECT_GT(calls.size(), 20u);
}

}  // namespace
}  // namespace flashshard::checkpoint
