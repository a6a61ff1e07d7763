// Runs that save while they train: the checkpoints and the bits of a run that waits for every save,
// at every stage; stops and failures while a save is in flight.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "runtime/checkpoint/folder.h"
#include "runtime/data/token_dataset.h"
#include "runtime/engine.h"
#include "runtime/run_checkpoint.h"
#include "runtime/run_folder.h"
#include "runtime/run_reporter.h"
#include "tests/runtime/checkpoint/faulty_file_system.h"
#include "tests/runtime/checkpoint/sample_state.h"
#include "tests/runtime/runs.h"

namespace flashshard {
namespace {

using checkpoint::test::FaultyFileSystem;
using test::Runs;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
using Settings = std::vector<std::string>;

/// Less than any rank of these runs saves: updates wait for the storage.
constexpr const char* kSmallStaging = "checkpoint.staging_bytes=4096";

Settings at_stage(int stage) {
  Settings settings = {fmt::format("parallelism.stage={}", stage)};
  if (stage >= 2) settings.emplace_back("parallelism.reduce=EACH");
  return settings;
}

class Saving : public Runs {
 protected:
  proto::RunConfig saving(const std::string& name, Settings settings) const {
    // In memory: what is tested are orders and bits, not the speed of a disk's fsync.
    const auto place = folder_ / name;
    if (!std::filesystem::exists(place)) {
      std::filesystem::create_directory(memory_ / name);
      std::filesystem::create_directory_symlink(memory_ / name, place);
    }
    settings.insert(settings.begin(), {"train.steps=8", "train.validate_every=0",
                                       "checkpoint.every=2", "checkpoint.keep_last=100"});
    return config(name, settings);
  }

  /// A run on storage that the test has in hand.
  static ExitCode run_on(FaultyFileSystem& storage, int world_size,
                         const proto::RunConfig& config) {
    std::atomic<ExitCode> code = ExitCode::kInternal;
    test::run_ranks(world_size, [&](Communicator& communicator) {
      code = train(communicator, {config, "auto", &storage});
    });
    return code;
  }

  checkpoint::test::TemporaryFolder memory_;

  std::filesystem::path checkpoints(const std::string& run) const {
    return folder_ / run / "checkpoints";
  }
  std::vector<std::string> names(const std::string& run) const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(checkpoints(run))) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }
  /// A checkpoint of step 1 with a NaN in the embedding of a character that every batch has: from
  /// there on each step is skipped.
  std::string save_poisoned() const {
    proto::RunConfig poisoned = saving("poisoned", {});
    poisoned.mutable_model()->set_vocab_size(256);
    const auto data = data::TokenDataset::open(folder_ / "data", data::Split::kTrain);
    test::run_ranks(1, [&](Communicator& communicator) {
      Engine engine(communicator, poisoned, 256);
      engine.initialize(1);
      engine.state().weight(0).as<uint16_t>()[' ' * 32] = 0x7fc0;
      const RunFolder folder = RunFolder::create(poisoned.run().dir());
      RunReporter reporter(folder, 0);
      RunProgress progress;
      progress.step = 1;
      progress.data = data.manifest();
      RunCheckpoint(communicator, folder, poisoned, engine, reporter).save(progress);
    });
    return (checkpoints("poisoned") / "step-00000001").string();
  }
  /// The bytes of all shard files of a run's checkpoints.
  std::map<std::string, std::string> shards(const std::string& run) const {
    std::map<std::string, std::string> shards;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(checkpoints(run))) {
      if (entry.path().extension() != ".safetensors") continue;
      std::ifstream file(entry.path(), std::ios::binary);
      shards[std::filesystem::relative(entry.path(), checkpoints(run)).string()] = {
          std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    }
    return shards;
  }
};

bool is_write_of_rows(const std::string& call, const std::string& path) {
  return call == "write" && path.find("safetensors") != std::string::npos;
}

/// Storage that needs a while for everything, so that training is ahead of it.
FaultyFileSystem slow_storage() {
  return FaultyFileSystem([](const std::string& call, const std::string& path) {
    if (is_write_of_rows(call, path)) std::this_thread::sleep_for(std::chrono::microseconds(100));
    return 0;
  });
}

struct Case {
  std::string name;
  int ranks;
  Settings settings;
};
class AtEveryStage : public Saving, public ::testing::WithParamInterface<Case> {};

TEST_P(AtEveryStage, EveryCheckpointHasTheBytesOfASaveThatIsWaitedFor) {
  const auto& [name, ranks, settings] = GetParam();
  Settings waiting = settings;
  waiting.insert(waiting.end(), {"train.steps=5", "checkpoint.at_end=false"});
  Settings going_on = waiting;
  waiting.emplace_back("checkpoint.async=false");
  going_on.emplace_back(kSmallStaging);
  ASSERT_EQ(run(ranks, saving("waited", waiting)), ExitCode::kDone);
  FaultyFileSystem storage = slow_storage();
  ASSERT_EQ(run_on(storage, ranks, saving("async", going_on)), ExitCode::kDone);
  EXPECT_EQ(shards("async").size(), static_cast<size_t>(2 * 2 * ranks));
  EXPECT_EQ(shards("async"), shards("waited"));
  for (const int64_t step : {2, 4}) {
    const std::string folder = checkpoint::step_name(step);
    EXPECT_TRUE(checkpoint::verify(checkpoints("async") / folder).findings.empty()) << folder;
    EXPECT_EQ(checkpoint::hash(checkpoints("async") / folder),
              checkpoint::hash(checkpoints("waited") / folder));
  }
}

std::vector<Case> cases() {
  std::vector<Case> cases;
  for (const int ranks : {1, 2, 4}) {
    for (const int stage : {0, 1, 2, 3}) {
      cases.push_back({fmt::format("Stage{}On{}", stage, ranks), ranks, at_stage(stage)});
    }
  }
  for (const int stage : {1, 2, 3}) {
    Settings groups = at_stage(stage);
    groups.emplace_back("parallelism.shard_group=2");
    cases.push_back({fmt::format("Groups{}", stage), 4, groups});
  }
  cases.push_back(
      {"ReleaseInGroups",
       4,
       {"parallelism.stage=3", "parallelism.reduce=EACH", "parallelism.release=true",
        "optimizer.clip_mode=BUCKET", "optimizer.skip_scope=BUCKET", "parallelism.shard_group=2"}});
  cases.push_back({"Moments",
                   2,
                   {"parallelism.stage=2", "parallelism.reduce=EACH", "parallelism.release=true",
                    "parallelism.accumulator=MOMENTS", "optimizer.state=FP32",
                    "optimizer.clip_norm=0", "optimizer.skip_scope=BUCKET"}});
  for (const int stage : {0, 2, 3}) {
    cases.push_back({fmt::format("Release{}", stage),
                     2,
                     {fmt::format("parallelism.stage={}", stage), "parallelism.reduce=EACH",
                      "parallelism.release=true", "optimizer.clip_mode=BUCKET",
                      "optimizer.skip_scope=BUCKET"}});
  }
  cases.push_back({"Reproducible",
                   2,
                   {"parallelism.stage=2", "parallelism.reproducible=true",
                    "parallelism.reduce=EACH", "parallelism.accumulator=FP32"}});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Stages, AtEveryStage, ::testing::ValuesIn(cases()),
                         [](const auto& test_case) { return test_case.param.name; });

TEST_F(Saving, ARunResumedFromSuchACheckpointEndsWithTheBitsOfTheOneLeftAlone) {
  FaultyFileSystem storage = slow_storage();
  ASSERT_EQ(run_on(storage, 2, saving("whole", {kSmallStaging})), ExitCode::kDone);
  ASSERT_EQ(run(2, saving("branch", {}), (checkpoints("whole") / "step-00000004").string()),
            ExitCode::kDone);
  EXPECT_EQ(hash("branch"), hash("whole"));
}

TEST_F(Saving, SkippedStepsDisturbNoSave) {
  const std::string poisoned = save_poisoned();
  const auto continued = [&](const std::string& name, const Settings& more) {
    Settings settings = {"optimizer.max_consecutive_skips=100"};
    settings.insert(settings.end(), more.begin(), more.end());
    FaultyFileSystem storage = slow_storage();
    const proto::RunConfig config = saving(name, settings);
    test::run_ranks(2, [&](Communicator& communicator) {
      EXPECT_EQ(train(communicator, {config, poisoned, &storage}), ExitCode::kDone);
    });
  };
  continued("waited", {"checkpoint.async=false"});
  continued("async", {kSmallStaging});
  EXPECT_EQ(metrics("async").back()["skipped_steps"], 7);
  EXPECT_EQ(shards("async"), shards("waited"));
}

class StoppedWhileSaving : public Saving, public ::testing::WithParamInterface<std::string> {};

TEST_P(StoppedWhileSaving, ARunWaitsForTheSaveThenSavesTheStepThatItStoppedAt) {
  const std::string by = GetParam();
  std::atomic<bool> asked = false;
  FaultyFileSystem storage([&](const std::string& call, const std::string& path) {
    if (is_write_of_rows(call, path) && !asked.exchange(true)) {
      if (by == "the stop file") std::ofstream(folder_ / "a" / "stop") << "";
      if (by == "SIGUSR1") ::kill(::getpid(), SIGUSR1);
      if (by == "SIGUSR2") ::kill(::getpid(), SIGUSR2);
      if (by == "SIGTERM") ::kill(::getpid(), SIGTERM);
    }
    // The first save is still being written when the run stops.
    if (asked && is_write_of_rows(call, path)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return 0;
  });
  // Steps enough that a stop that nobody heard would be noticed.
  ASSERT_EQ(run_on(storage, 2, saving("a", {"train.steps=1000", kSmallStaging})),
            ExitCode::kStopped);
  EXPECT_EQ(status("a", 1)["exit_code"], 8);
  EXPECT_EQ(status("a", 0)["reason"], "stopped by " + by);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "a" / "stop"));
  const int64_t stopped_at = status("a", 0)["last_step"];
  const auto complete = checkpoint::list_complete(checkpoints("a").string());
  ASSERT_GE(complete.size(), 2u);
  EXPECT_EQ(complete.front().step, 2);
  EXPECT_EQ(complete.back().step, stopped_at);
  EXPECT_EQ(names("a").size(), complete.size() + 1) << "beside them only `latest`";
  for (const auto& checkpoint : complete) {
    EXPECT_TRUE(checkpoint::verify(checkpoint.path).findings.empty()) << checkpoint.path;
  }
}

INSTANTIATE_TEST_SUITE_P(Causes, StoppedWhileSaving,
                         ::testing::Values("the stop file", "SIGUSR1", "SIGUSR2", "SIGTERM"),
                         [](const auto& test_case) { return fmt::format("{}", test_case.index); });

TEST_F(Saving, TheStepOfAnEarlierBranchIsSavedAgainAndKeptAsItWas) {
  ASSERT_EQ(run(2, saving("a", {})), ExitCode::kDone);
  const auto before = shards("a");
  FaultyFileSystem storage = slow_storage();
  const proto::RunConfig config = saving("a", {});
  test::run_ranks(2, [&](Communicator& communicator) {
    EXPECT_EQ(
        train(communicator, {config, (checkpoints("a") / "step-00000004").string(), &storage}),
        ExitCode::kDone);
  });
  EXPECT_EQ(shards("a"), before);
}

TEST_F(Saving, AWriteThatFailsEndsAllRanksAtOneOfTheNextSteps) {
  FaultyFileSystem full([](const std::string& call, const std::string& path) {
    const bool fails = call == "write" && path.find("step-00000004") != std::string::npos &&
                       path.ends_with("weights-00001.safetensors");
    return fails ? ENOSPC : 0;
  });
  const proto::RunConfig settings = saving("a", {"train.steps=12", kSmallStaging});
  std::atomic<int> failed = 0;
  test::run_ranks(2, [&](Communicator& communicator) {
    try {
      train(communicator, {settings, "auto", &full});
    } catch (const AgreedError& error) {
      ++failed;
      EXPECT_EQ(error.code(), ExitCode::kOutOfSpace);
      EXPECT_THAT(error.what(),
                  AllOf(HasSubstr("the checkpoint of step 4 was not saved, earlier ones are as "
                                  "they were: rank 1 of 2 on"),
                        HasSubstr("No space left on device"), HasSubstr("weights-00001")));
    }
  });
  EXPECT_EQ(failed, 2);
  EXPECT_EQ(status("a", 0)["exit_code"], 5);
  EXPECT_LT(status("a", 1)["last_step"].get<int>(), 12);
  EXPECT_THAT(names("a"), UnorderedElementsAre("latest", "step-00000002"));
  // With space again the run goes on to the bits of one that had it all along.
  ASSERT_EQ(run(2, settings), ExitCode::kDone);
  ASSERT_EQ(run(2, saving("b", {"train.steps=12"})), ExitCode::kDone);
  EXPECT_EQ(hash("a"), hash("b"));
}

TEST_F(Saving, ASaveInFlightIsFinishedWhenTheRunFailsForAnotherReason) {
  const std::string poisoned = save_poisoned();
  FaultyFileSystem storage = slow_storage();
  const proto::RunConfig config =
      saving("a", {"optimizer.max_consecutive_skips=2", "checkpoint.every=1"});
  test::run_ranks(2, [&](Communicator& communicator) {
    try {
      train(communicator, {config, poisoned, &storage});
      ADD_FAILURE() << "the run did not fail";
    } catch (const AgreedError& error) {
      EXPECT_EQ(error.code(), ExitCode::kNonFinite);
    }
  });
  // Step 2 was begun to be saved before step 3 was one too many.
  EXPECT_EQ(status("a", 0)["last_step"], 3);
  EXPECT_THAT(names("a"), UnorderedElementsAre("step-00000002", "latest"));
  EXPECT_TRUE(checkpoint::verify(checkpoints("a") / "step-00000002").findings.empty());
}

TEST_F(Saving, MetricsTellWhatASaveHeldUpAndHowLongItTook) {
  FaultyFileSystem storage = slow_storage();
  ASSERT_EQ(run_on(storage, 2, saving("a", {kSmallStaging})), ExitCode::kDone);
  const auto lines = metrics("a");
  int ended = 0;
  for (const auto& line : lines) {
    EXPECT_GE(line["save_wait_ms"].get<double>(), 0);
    ended += line.contains("save_background_ms") ? 1 : 0;
  }
  EXPECT_EQ(lines[0]["save_wait_ms"], 0);
  EXPECT_GT(lines[2]["save_wait_ms"].get<double>(), 0) << "the save of step 2 was begun before it";
  EXPECT_GE(ended, 1);

  ASSERT_EQ(run(2, saving("waited", {"checkpoint.async=false"})), ExitCode::kDone);
  EXPECT_GT(metrics("waited")[2]["save_wait_ms"].get<double>(), 0);
  for (const auto& line : metrics("waited")) EXPECT_FALSE(line.contains("save_background_ms"));
}

TEST_F(Saving, StagingIsBoundedPredictedAndOnlyThereForSavesInTheMiddle) {
  const auto staging = [&](const std::string& name, const Settings& settings, int64_t rank) {
    EXPECT_EQ(run(2, saving(name, settings)), ExitCode::kDone);
    std::ifstream file(folder_ / name / "memory.json");
    const auto memory = nlohmann::json::parse(file)["ranks"][static_cast<size_t>(rank)];
    EXPECT_EQ(memory["predicted"]["staging"], memory["tagged"]["staging"]) << name;
    return memory["tagged"]["staging"].get<int64_t>();
  };
  EXPECT_EQ(staging("small", {kSmallStaging}, 1), 4096);
  int64_t saved = 0;
  for (const int64_t rank : {0, 1}) {
    saved += staging("whole" + std::to_string(rank), at_stage(3), rank);
  }
  std::ifstream file(folder_ / "whole0" / "memory.json");
  const auto memory = nlohmann::json::parse(file)["ranks"];
  int64_t state = 0;
  for (const auto& rank : memory) {
    for (const char* of : {"weights", "correction", "momentum", "variance", "scales"}) {
      state += rank["tagged"][of].get<int64_t>();
    }
  }
  EXPECT_EQ(saved, state) << "all ranks together stage each byte once";
  EXPECT_EQ(staging("waited", {"checkpoint.async=false"}, 0), 0);
  EXPECT_EQ(staging("end", {"checkpoint.every=0"}, 0), 0);
}

TEST_F(Saving, StagingThatIsTooSmallIsRefusedBeforeTheFirstStep) {
  const Error error =
      failure(2, saving("a", {kSmallStaging, "model.feed_forward_size=2048", "optimizer.state=FP32",
                              "optimizer.master_weight_bits=32"}));
  EXPECT_EQ(error.code(), ExitCode::kUsage);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("checkpoint.staging_bytes has no room for one unit of"),
                                  HasSubstr("down")));
  EXPECT_TRUE(metrics("a").empty());
}

TEST_F(Saving, CheckpointsOfKeepEveryStay) {
  ASSERT_EQ(
      run(2, saving("a", {"train.steps=20", "checkpoint.keep_last=2", "checkpoint.keep_every=8"})),
      ExitCode::kDone);
  EXPECT_THAT(names("a"), UnorderedElementsAre("step-00000008", "step-00000016", "step-00000018",
                                               "step-00000020", "latest"));
}

}  // namespace
}  // namespace flashshard
