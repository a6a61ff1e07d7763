// A power loss after any operation of a save, whatever survives of the caches: what was reported as
// saved is whole, what is complete by name is whole, `latest` names something complete, and the run
// goes on. Without any one fsync that is not so: docs/checkpoints.md, "How we know", has the table.
#include "tests/runtime/checkpoint/power_loss.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>
#include <set>

#include "runtime/checkpoint/folder.h"
#include "tests/runtime/checkpoint/ranks_on_hosts.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const std::string kFolder = "/runs/mine/checkpoints";

/// What happened to a storage.
struct Recording {
  Disk start;
  std::vector<Operation> log;
  std::vector<Operation> before;  // what had happened to `start`

  /// As it was after so many operations, with all caches: what a killed process leaves.
  Disk after(size_t operations) const {
    Disk disk = start;
    for (size_t i = 0; i < operations; ++i) disk.apply(log[i]);
    return disk;
  }
};

Disk disk_with_runs() {
  SimulatedStorage storage;
  HostFileSystem file_system(storage);
  file_system.make_directory("/runs");
  file_system.sync_directory("/");
  return storage.disk();
}

/// A run on ranks of several hosts; records what it does.
class RecordedRun {
 public:
  explicit RecordedRun(std::vector<int> hosts, Disk start = disk_with_runs())
      : hosts_(std::move(hosts)), start_(std::move(start)), storage_(start_) {}

  /// The start of `flashshard train`: its folders, then the cleaning up.
  RecordedRun& begin() {
    HostFileSystem file_system(storage_, hosts_[0], 0);
    file_system.phase = phase_++;
    for (const char* path : {"/runs/mine", "/runs/mine/checkpoints"}) {
      file_system.make_directory(path);
    }
    clean_up(kFolder, file_system);
    return *this;
  }
  RecordedRun& save(int64_t step, int keep_last = 1, SaveMode mode = SaveMode::kWaited) {
    std::vector<std::string> names;
    for (const int host : hosts_) names.push_back(fmt::format("host {}", host));
    const auto on_rank = [&](Communicator& communicator) {
      const int rank = communicator.rank();
      HostFileSystem file_system(storage_, hosts_[static_cast<size_t>(rank)], rank);
      file_system.phase = phase_;
      RanksOnHosts hosted(communicator, names, [&] { ++file_system.phase; });
      save_sample(mode, kFolder, step, hosted, static_cast<uint64_t>(step), file_system, keep_last);
      storage_.report(step, rank, file_system.phase);
    };
    EXPECT_THAT(errors_of_ranks(static_cast<int>(hosts_.size()), on_rank), Each(""));
    constexpr int kMoreThanASaveHas = 1000;
    phase_ += kMoreThanASaveHas;
    return *this;
  }

  const Disk& disk() const { return storage_.disk(); }
  Recording recording(uint64_t order = 0) const {
    return {start_, in_an_order(start_, storage_.log(), order), {}};
  }

 private:
  std::vector<int> hosts_;
  Disk start_;
  SimulatedStorage storage_;
  int phase_ = 0;
};

const std::vector<int> kOneRank = {0};
const std::vector<int> kTwoHosts = {0, 0, 1, 1};  // of four ranks

/// Two saves on two hosts, of which the second deletes the first.
Recording two_saves(uint64_t order = 0, SaveMode mode = SaveMode::kWaited) {
  return RecordedRun(kTwoHosts).begin().save(10, 1, mode).save(20, 1, mode).recording(order);
}

/// The run killed after so many operations, which no cache notices, started again and at its save.
Recording killed_after(const Recording& killed, size_t operations) {
  Recording again = RecordedRun(kOneRank, killed.after(operations)).begin().save(20).recording();
  again.before.assign(killed.log.begin(),
                      killed.log.begin() + static_cast<std::ptrdiff_t>(operations));
  return again;
}

/// The operation that renames something to a name that has `part`.
size_t rename_to(const Recording& recording, std::string_view part) {
  const auto found = std::ranges::find_if(recording.log, [&](const Operation& operation) {
    return operation.to_name.find(part) != std::string::npos;
  });
  EXPECT_NE(found, recording.log.end()) << part;
  return static_cast<size_t>(found - recording.log.begin());
}

/// A save that finds its step there, with a manifest that does not hold. `latest` names another.
Recording save_of_a_damaged_step() {
  RecordedRun run(kOneRank);
  // The second save of step 10 finds it there, and `latest` from the first becomes durable.
  run.begin().save(20).save(10, 0).save(10, 0);
  Disk disk = run.disk();
  Disk::Node& manifest = disk.node(disk.find(kFolder + "/step-00000020/manifest.pb"));
  manifest.current.back() = static_cast<char>(~manifest.current.back());
  manifest.durable = manifest.current;
  return RecordedRun(kOneRank, std::move(disk)).save(20, 0).recording();
}

/// The run goes on after a power loss: cleaning up leaves nothing half done, and the step at which
/// the power went is saved.
void expect_that_the_run_goes_on(const Disk& disk, const std::string& where) {
  static const SampleState state(0, 1, 20);
  SimulatedStorage storage(disk);
  HostFileSystem file_system(storage);
  clean_up(kFolder, file_system);
  const auto alone = std::move(make_thread_communicators(1)[0]);
  ASSERT_NO_THROW(save({.folder = kFolder,
                        .run = sample_run(20),
                        .layout = &state.layout(),
                        .views = state.views(),
                        .keep_last = 1,
                        .file_system = &file_system},
                       *alone))
      << where;
  for (const std::string& name : list(file_system, kFolder)) {
    EXPECT_TRUE(name == "latest" || step_of_name(name) || name.find(".bad") != std::string::npos)
        << name << where;
  }
  const Verification saved = verify_folder(kFolder + "/step-00000020", file_system);
  EXPECT_THAT(saved.findings, IsEmpty()) << where;
  EXPECT_EQ(read_file(file_system, kFolder + "/latest", 100), "step-00000020\n") << where;
}

struct Replay {
  size_t points = 0;  // at which the power was cut
  size_t states = 0;  // that were looked at
  std::set<std::string> different;
  std::optional<Violation> broken;
};

constexpr size_t kNone = static_cast<size_t>(-1);

/// Cuts the power after every operation, the `dropped` one without effect, until a promise is
/// broken. `visit` sees every state that no earlier point could leave.
Replay replay(const Recording& recording, size_t dropped = kNone, const Sampling& sampling = {},
              const std::function<void(const Disk&, const std::string&)>& visit = nullptr) {
  Replay result;
  Promises promises(contents_of_steps({10, 20, 30}));
  for (const Operation& operation : recording.before) promises.note(operation);
  Disk disk = recording.start;
  const bool was_damaged = refused_start(disk, kFolder).has_value();
  for (size_t i = 0; i <= recording.log.size() && !result.broken; ++i) {
    if (i > 0 && i - 1 != dropped) disk.apply(recording.log[i - 1]);
    if (i > 0) promises.note(recording.log[i - 1]);
    if (dropped != kNone && i <= dropped) continue;  // as with it
    ++result.points;
    Sampling here = sampling;
    here.seed += i;
    for_each_power_loss(disk, here, [&](const Disk& survivor) {
      ++result.states;
      result.broken = promises.broken_on(survivor, kFolder);
      if (!result.broken && dropped == kNone && !was_damaged) {
        if (const auto why = refused_start(survivor, kFolder)) result.broken = {' ', *why};
      }
      if (result.broken) {
        result.broken->what +=
            fmt::format(", cut after {} of {} operations, before {}", i, recording.log.size(),
                        i < recording.log.size() ? recording.log[i].path : "");
      } else if (visit && result.different.insert(signature(survivor)).second) {
        visit(survivor, fmt::format("cut after {} of {} operations", i, recording.log.size()));
      }
      return !result.broken;
    });
  }
  return result;
}

struct Scenario {
  const char* name;
  std::function<Recording()> record;
  size_t recover_every = 1;  // of the different states
};
void PrintTo(const Scenario& scenario, std::ostream* out) { *out << scenario.name; }

class PowerLoss : public ::testing::TestWithParam<Scenario> {};

TEST_P(PowerLoss, AtAnyOperationBreaksNoPromiseAndTheRunGoesOn) {
  const Recording recording = GetParam().record();
  size_t seen = 0;
  const auto recover = [&](const Disk& disk, const std::string& where) {
    if (seen++ % (GetParam().recover_every * kSampleDivisor) == 0)
      expect_that_the_run_goes_on(disk, where);
  };
  const Replay result = replay(recording, kNone, {}, recover);
  EXPECT_FALSE(result.broken) << result.broken->what;
  fmt::print("{} operations, {} states after a power loss, {} of them different\n",
             recording.log.size(), result.states, result.different.size());
}

INSTANTIATE_TEST_SUITE_P(
    Saves, PowerLoss,
    ::testing::Values(
        Scenario{"IntoAFolderOfItsOwn",
                 [] { return RecordedRun(kOneRank).save(20, 0).recording(); }},
        Scenario{
            "OfWhichTwoAreKept",
            [] {
              return RecordedRun(kOneRank).begin().save(10, 2).save(20, 2).save(30, 2).recording();
            },
            2},
        Scenario{"OnTwoHosts", [] { return two_saves(); }, 4},
        Scenario{"OnTwoHostsInAnotherOrder", [] { return two_saves(1); }, 16},
        Scenario{"OnTwoHostsBesideTraining", [] { return two_saves(0, SaveMode::kBesideTraining); },
                 16},
        Scenario{"OnTwoHostsUnderZstd", [] { return two_saves(0, SaveMode::kUnderZstd); }, 16},
        Scenario{"OfADamagedStep", save_of_a_damaged_step}),
    [](const auto& scenario) { return scenario.param.name; });

TEST(PowerLossAfterAKill, AtAnyTwoOperationsBreaksNoPromise) {
  const Recording undisturbed = RecordedRun(kOneRank).begin().save(10).save(20).recording();
  size_t states = 0;
  size_t kills = 0;
  for (size_t killed = 0; killed <= undisturbed.log.size(); killed += kSampleDivisor, ++kills) {
    const Replay result = replay(killed_after(undisturbed, killed), kNone, {16, 2, killed});
    ASSERT_FALSE(result.broken) << "killed after " << killed << ": " << result.broken->what;
    states += result.states;
  }
  fmt::print("{} kills, {} states after a power loss\n", kills, states);
}

/// What a sync is for, by what it syncs and what came before it.
std::string role_of(const std::vector<Operation>& log, size_t at) {
  const Operation& sync = log[at];
  const std::string name = name_of_path(sync.path);
  if (sync.kind == Operation::Kind::kSync) {
    if (name.starts_with("latest")) return "`latest`, before it gets its name";
    return name.ends_with(".safetensors") ? "a rank's shard file" : name;
  }
  if (name.find(".tmp-") != std::string::npos) {
    return sync.host == 0 ? "the attempt's folder, on rank 0's host"
                          : "the attempt's folder, on every other host";
  }
  if (name == "mine" || name == "runs") {
    return name == "mine" ? "the run's folder" : "the folder above the run's";
  }
  const std::span before(log.data(), at);
  const auto renamed = std::find_if(before.rbegin(), before.rend(), [](const Operation& operation) {
    return operation.kind == Operation::Kind::kRename;
  });
  const std::string to = renamed == before.rend() ? "" : renamed->to_name;
  if (to == "latest") return "the checkpoints folder, before a deletion";
  if (to.find(".deleting-") != std::string::npos) {
    return "the checkpoints folder, after the renames of a deletion";
  }
  const bool is_start = std::ranges::none_of(before, [](const Operation& operation) {
    return operation.kind == Operation::Kind::kCreate;
  });
  return is_start ? "the checkpoints folder, at a start that finds a deletion interrupted"
                  : "the checkpoints folder, after the rename to `step-N`";
}

/// Role by role, the promises that are broken when such a sync is left out; ' ' for one without
/// which none is.
using Necessity = std::map<std::string, std::set<char>>;
Necessity broken_without(const Recording& recording) {
  Necessity broken;
  for (size_t i = 0; i < recording.log.size(); ++i) {
    if (!recording.log[i].is_sync()) continue;
    const Replay result = replay(recording, i);
    broken[role_of(recording.log, i)].insert(result.broken ? result.broken->promise : ' ');
  }
  return broken;
}

void expect_all_necessary(const Necessity& broken) {
  for (const auto& [role, promises] : broken) {
    EXPECT_FALSE(promises.contains(' ')) << role << ": superfluous, or the model is too weak";
  }
}

TEST(WithoutAnyOneFsync, ASaveIntoAFolderOfItsOwnBreaksAPromise) {
  expect_all_necessary(broken_without(RecordedRun(kOneRank).save(20, 0).recording()));
}

TEST(WithoutAnyOneFsync, ASaveOfADamagedStepBreaksAPromise) {
  expect_all_necessary(broken_without(save_of_a_damaged_step()));
}

TEST(WithoutAnyOneFsync, ARunOnTwoHostsBreaksAPromiseAsTheTableSays) {
  Necessity broken = broken_without(two_saves());
  expect_all_necessary(broken);
  // What only a start after a kill needs.
  const Recording killed = RecordedRun(kOneRank).begin().save(10).save(20).recording();
  const size_t deleting = rename_to(killed, ".deleting-");
  const std::string start = "the checkpoints folder, at a start that finds a deletion interrupted";
  broken[start] = broken_without(killed_after(killed, deleting + 1))[start];
  EXPECT_THAT(broken[start], ElementsAre('b'));

  const std::string docs = read_text(std::string(FLASHSHARD_TEST_DATA) + "/../docs/checkpoints.md");
  for (const auto& [role, promises] : broken) {
    EXPECT_THAT(docs, HasSubstr(fmt::format("\n| {} | {} | ", role, fmt::join(promises, ", "))));
  }
  const size_t table = docs.find("\n| fsync of | breaks | without it |\n");
  ASSERT_NE(table, std::string::npos);
  const std::string rows = docs.substr(table, docs.find("\n\n", table) - table);
  EXPECT_EQ(std::ranges::count(rows, '\n') - 2, std::ssize(broken)) << "rows that nothing shows";
}

TEST(WithoutAnyOneFsync, AStepThatAKilledSaveLeftWholeIsNotDurableYet) {
  const Recording killed = RecordedRun(kOneRank).begin().save(10).save(20).recording();
  const Necessity broken =
      broken_without(killed_after(killed, rename_to(killed, "step-00000020") + 1));
  EXPECT_THAT(broken.at("the checkpoints folder, after the rename to `step-N`"),
              Not(Contains(' ')));
}

}  // namespace
}  // namespace flashshard::checkpoint
