// metrics.jsonl: its keys, its numbers, what a resumed run and a crash leave of it.
#include "runtime/metrics/metrics_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "tests/runtime/metrics/temporary_folder.h"

namespace flashshard::metrics {
namespace {

using flashshard::testing::contents_of;
using flashshard::testing::error_of;
using flashshard::testing::FileSizeLimit;
using flashshard::testing::put;
using flashshard::testing::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;

StepMetrics metrics_of(int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.loss = 2.5;
  return metrics;
}

std::vector<int64_t> steps_in(const std::filesystem::path& path) {
  std::vector<int64_t> steps;
  std::istringstream lines(contents_of(path));
  for (std::string line; std::getline(lines, line);) {
    steps.push_back(nlohmann::json::parse(line).at("step").get<int64_t>());
  }
  return steps;
}

std::vector<std::string> keys_of(const std::string& line) {
  std::vector<std::string> keys;
  const auto object = nlohmann::ordered_json::parse(line);
  for (const auto& item : object.items()) keys.push_back(item.key());
  return keys;
}

TEST(MetricsLine, HasTheDocumentedKeysInOrder) {
  const std::vector<std::string> keys = {
      "step",          "loss",         "grad_norm",         "clip_coefficient",
      "learning_rate", "tokens",       "tokens_per_second", "step_ms",
      "data_ms",       "forward_ms",   "backward_ms",       "reduce_ms",
      "update_ms",     "gather_ms",    "exposed_comm_ms",   "slowest_rank",
      "peak_bytes",    "save_wait_ms", "skipped_steps",     "nonfinite",
      "health"};
  StepMetrics metrics = metrics_of(1);
  EXPECT_EQ(keys_of(to_json_line(metrics)), keys);
  std::vector<std::string> with_more = keys;
  with_more.insert(with_more.end(), {"save_background_ms", "validation_loss"});
  metrics.save_background_ms = 12.5;
  metrics.validation_loss = 2.0;
  EXPECT_EQ(keys_of(to_json_line(metrics)), with_more);
}

TEST(MetricsLine, KeepsEveryBitOfANumber) {
  StepMetrics metrics = metrics_of(7);
  metrics.loss = 0.1 + 0.2;
  metrics.learning_rate = 6e-4f;
  metrics.tokens = int64_t{1} << 60;
  metrics.health = {{"saturated_groups", 3}};
  const auto object = nlohmann::json::parse(to_json_line(metrics));
  EXPECT_EQ(object["loss"].get<double>(), 0.1 + 0.2);
  EXPECT_EQ(object["learning_rate"].get<double>(), static_cast<double>(6e-4f));
  EXPECT_EQ(object["tokens"].get<int64_t>(), int64_t{1} << 60);
  EXPECT_EQ(object["health"]["saturated_groups"].get<int64_t>(), 3);
}

TEST(MetricsLine, SpellsNonFiniteNumbersAsStrings) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  StepMetrics metrics = metrics_of(1);
  metrics.loss = std::numeric_limits<double>::quiet_NaN();
  metrics.grad_norm = kInfinity;
  metrics.learning_rate = -kInfinity;
  const auto object = nlohmann::json::parse(to_json_line(metrics));
  EXPECT_EQ(object["loss"], "nan");
  EXPECT_EQ(object["grad_norm"], "inf");
  EXPECT_EQ(object["learning_rate"], "-inf");
  EXPECT_TRUE(object["step_ms"].is_number());
}

TEST(MetricsFile, GrowsByOneLineAStep) {
  const TemporaryFolder folder;
  MetricsFile file(folder / "metrics.jsonl", 0);
  for (int64_t step = 1; step <= 3; ++step) file.append(metrics_of(step));
  EXPECT_THAT(steps_in(folder / "metrics.jsonl"), ElementsAre(1, 2, 3));
  EXPECT_THAT(contents_of(folder / "metrics.jsonl"), EndsWith("}\n"));
}

TEST(MetricsFile, GoesOnAfterTheStepOfTheCheckpoint) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  {
    MetricsFile file(path, 0);
    for (int64_t step = 1; step <= 5; ++step) file.append(metrics_of(step));
  }
  MetricsFile file(path, 3);
  EXPECT_EQ(file.opened().kept_lines, 3);
  EXPECT_EQ(file.opened().dropped_lines, 2);
  file.append(metrics_of(4));
  EXPECT_THAT(steps_in(path), ElementsAre(1, 2, 3, 4));
}

TEST(MetricsFile, StartsEmptyForARunFromTheBeginning) {
  const TemporaryFolder folder;
  { MetricsFile(folder / "metrics.jsonl", 0).append(metrics_of(1)); }
  const MetricsFile file(folder / "metrics.jsonl", 0);
  EXPECT_EQ(contents_of(folder / "metrics.jsonl"), "");
}

TEST(MetricsFile, LeavesAWholeFileUntouched) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  { MetricsFile(path, 0).append(metrics_of(1)); }
  const auto before = std::filesystem::last_write_time(path);
  const MetricsFile file(path, 1);
  EXPECT_EQ(std::filesystem::last_write_time(path), before);
}

struct TornLine {
  const char* name;
  std::string text;
};

class MetricsFileWith : public ::testing::TestWithParam<TornLine> {};

TEST_P(MetricsFileWith, DropsTheTornLineAlone) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  put(path, to_json_line(metrics_of(1)) + "\n" + GetParam().text);
  MetricsFile file(path, 10);
  EXPECT_EQ(file.opened().kept_lines, 1);
  EXPECT_EQ(file.opened().dropped_lines, 1);
  file.append(metrics_of(2));
  EXPECT_THAT(steps_in(path), ElementsAre(1, 2));
}

INSTANTIATE_TEST_SUITE_P(Crashes, MetricsFileWith,
                         ::testing::Values(TornLine{"CutObject", R"({"step": 2, "lo)"},
                                           TornLine{"ObjectWithoutItsEnd", R"({"step": 2})"},
                                           TornLine{"Zeros", std::string(20, '\0')},
                                           TornLine{"GarbageLine", "}{\n"},
                                           TornLine{"ObjectWithoutStep", "{\"loss\": 1}\n"},
                                           TornLine{"StepThatIsNoNumber", "{\"step\": \"2\"}\n"},
                                           TornLine{"NoObject", "[2]\n"}),
                         [](const auto& instance) { return instance.param.name; });

TEST(MetricsFile, TakesBackALineThatAFullDiskCutShort) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  MetricsFile file(path, 0);
  file.append(metrics_of(1));
  {
    const FileSizeLimit limit(std::filesystem::file_size(path) + 20);
    const Error error = error_of([&] { file.append(metrics_of(2)); });
    EXPECT_EQ(error.code(), ExitCode::kOutOfSpace);
    EXPECT_THAT(error.what(), HasSubstr("metrics.jsonl"));
  }
  EXPECT_THAT(steps_in(path), ElementsAre(1));
  file.append(metrics_of(2));
  EXPECT_THAT(steps_in(path), ElementsAre(1, 2));
}

TEST(MetricsFile, KeepsTheOldFileWhenTheShorterOneCannotBeWritten) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  {
    MetricsFile file(path, 0);
    for (int64_t step = 1; step <= 3; ++step) file.append(metrics_of(step));
  }
  std::filesystem::create_symlink("/dev/full", path.string() + ".tmp");
  EXPECT_EQ(error_of([&] { MetricsFile(path, 2); }).code(), ExitCode::kOutOfSpace);
  EXPECT_THAT(steps_in(path), ElementsAre(1, 2, 3));
  EXPECT_FALSE(std::filesystem::exists(path.string() + ".tmp"));
}

TEST(MetricsFile, SaysWhichFileItCannotOpen) {
  const TemporaryFolder folder;
  const Error missing = error_of([&] { MetricsFile(folder / "missing/metrics.jsonl", 0); });
  EXPECT_EQ(missing.code(), ExitCode::kUsage);
  EXPECT_THAT(missing.what(), HasSubstr("No such file or directory"));
  std::filesystem::create_directory(folder / "metrics.jsonl");
  EXPECT_THAT(error_of([&] { MetricsFile(folder / "metrics.jsonl", 0); }).what(),
              HasSubstr("Is a directory"));
  EXPECT_THAT(error_of([&] { read_file(folder / "missing"); }).what(),
              HasSubstr("cannot read the file: No such file or directory"));
}

}  // namespace
}  // namespace flashshard::metrics
