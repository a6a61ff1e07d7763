// A rank's status: complete at every moment, told even when the disk is full.
#include "runtime/metrics/status_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/runtime/metrics/temporary_folder.h"

namespace flashshard::metrics {
namespace {

using flashshard::testing::contents_of;
using flashshard::testing::error_of;
using flashshard::testing::TemporaryFolder;
using ::testing::MatchesRegex;

nlohmann::json status_in(const std::filesystem::path& path) {
  return nlohmann::json::parse(contents_of(path));
}

TEST(StatusFile, TellsHowARankStands) {
  const TemporaryFolder folder;
  StatusFile(folder / "rank.json").set({RunState::kRunning, std::nullopt, "", 12});
  const auto status = status_in(folder / "rank.json");
  EXPECT_EQ(status["state"], "running");
  EXPECT_TRUE(status["exit_code"].is_null());
  EXPECT_EQ(status["reason"], "");
  EXPECT_EQ(status["last_step"], 12);
  EXPECT_EQ(status["pid"], getpid());
  EXPECT_FALSE(status["host"].get<std::string>().empty());
  EXPECT_THAT(status["time"].get<std::string>(), MatchesRegex("20..-..-..T..:..:..Z"));
  EXPECT_EQ(status.size(), 7u);
}

TEST(StatusFile, TellsHowARankEnded) {
  const TemporaryFolder folder;
  StatusFile file(folder / "rank.json");
  file.set({RunState::kStarting, std::nullopt, "", 0});
  file.set({RunState::kFailed, ExitCode::kCommunication, "rank 1 is late", 9});
  const auto status = status_in(folder / "rank.json");
  EXPECT_EQ(status["state"], "failed");
  EXPECT_EQ(status["exit_code"], 6);
  EXPECT_EQ(status["reason"], "rank 1 is late");
  EXPECT_FALSE(std::filesystem::exists(folder / "rank.json.tmp"));
}

TEST(StatusFile, SpellsEveryState) {
  const std::pair<RunState, const char*> names[] = {
      {RunState::kStarting, "starting"}, {RunState::kRunning, "running"},
      {RunState::kSaving, "saving"},     {RunState::kDone, "done"},
      {RunState::kFailed, "failed"},     {RunState::kStopped, "stopped"}};
  for (const auto& [state, name] : names) EXPECT_EQ(name_of(state), name);
}

TEST(StatusFile, IsJsonWhateverTheReasonHolds) {
  const auto status = nlohmann::json::parse(
      to_json({RunState::kFailed, ExitCode::kBadData, "bad path \"\xff\xfe\"\n", 0}));
  EXPECT_EQ(status["exit_code"], 3);
  EXPECT_THAT(status["reason"].get<std::string>(), ::testing::StartsWith("bad path \""));
}

TEST(StatusFile, IsWholeForAReaderAtEveryMoment) {
  const TemporaryFolder folder;
  StatusFile file(folder / "rank.json");
  file.set({});
  std::atomic<bool> writing = true;
  std::thread writer([&] {
    for (int64_t step = 1; step <= 500; ++step) {
      file.set({RunState::kRunning, std::nullopt, std::string(step % 2 == 0 ? 900 : 3, 'x'), step});
    }
    writing = false;
  });
  int64_t last_seen = 0;
  while (writing) {
    const auto status = nlohmann::json::parse(contents_of(folder / "rank.json"), nullptr, false);
    EXPECT_FALSE(status.is_discarded());
    if (status.is_discarded()) break;
    EXPECT_GE(status["last_step"].get<int64_t>(), last_seen);
    last_seen = status["last_step"].get<int64_t>();
  }
  writer.join();
}

class StatusFileOnAFullDisk : public ::testing::TestWithParam<size_t> {};

TEST_P(StatusFileOnAFullDisk, StillTellsWhyTheRunFailed) {
  const TemporaryFolder folder;
  StatusFile file(folder / "rank.json");
  file.set({RunState::kRunning, std::nullopt, std::string(GetParam(), 'x'), 3});
  std::filesystem::create_symlink("/dev/full", folder / "rank.json.tmp");
  EXPECT_TRUE(file.try_set({RunState::kFailed, ExitCode::kOutOfSpace, "the disk is full", 3}));
  const auto status = status_in(folder / "rank.json");
  EXPECT_EQ(status["state"], "failed");
  EXPECT_EQ(status["reason"], "the disk is full");
}

INSTANTIATE_TEST_SUITE_P(OldReason, StatusFileOnAFullDisk, ::testing::Values(0, 200));

TEST(StatusFile, SaysWhenThereIsNoPlaceForIt) {
  const TemporaryFolder folder;
  StatusFile file(folder / "missing/rank.json");
  EXPECT_EQ(error_of([&] { file.set({}); }).code(), ExitCode::kUsage);
  EXPECT_FALSE(file.try_set({}));
  StatusFile unborn(folder / "rank.json");
  std::filesystem::create_symlink("/dev/full", folder / "rank.json.tmp");
  EXPECT_EQ(error_of([&] { unborn.set({}); }).code(), ExitCode::kOutOfSpace);
}

}  // namespace
}  // namespace flashshard::metrics
