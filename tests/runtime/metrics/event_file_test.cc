// TensorBoard event files: checksums against published vectors, files against TensorBoard's own
// writer.
#include "runtime/metrics/event_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "runtime/metrics/crc32c.h"
#include "tests/runtime/metrics/temporary_folder.h"

namespace flashshard::metrics {
namespace {

using flashshard::testing::contents_of;
using flashshard::testing::error_of;
using flashshard::testing::FileSizeLimit;
using flashshard::testing::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

TEST(Crc32c, GivesThePublishedValues) {
  std::string ascending(32, '\0');
  std::iota(ascending.begin(), ascending.end(), '\0');
  const std::string descending(ascending.rbegin(), ascending.rend());
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);  // RFC 3720 B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c(ascending), 0x46dd794eu);
  EXPECT_EQ(crc32c(descending), 0x113fdb5cu);
}

TEST(Crc32c, IsMaskedByRotationAndOffset) {
  EXPECT_EQ(masked_crc32c(""), 0xa282ead8u);
  const uint32_t crc = 0xe3069283u;
  EXPECT_EQ(masked_crc32c("123456789"), ((crc >> 15) | (crc << 17)) + 0xa282ead8u);
}

TEST(Record, HasLengthAndChecksumsAroundTheData) {
  const std::string record = frame_record("abc");
  ASSERT_EQ(record.size(), 8u + 4 + 3 + 4);
  EXPECT_EQ(record.substr(0, 8), std::string("\3\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(record.substr(12, 3), "abc");
  const auto little_endian = [&](size_t at) {
    uint32_t value = 0;
    for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<uint8_t>(record[at + i]);
    return value;
  };
  EXPECT_EQ(little_endian(8), masked_crc32c(record.substr(0, 8)));
  EXPECT_EQ(little_endian(15), masked_crc32c("abc"));
}

EventFileOptions fixed_options(const std::filesystem::path& directory) {
  return {directory, /*last_step=*/10, [] { return 1700000000.25; }, "host", 42};
}

TEST(EventFile, IsByteForByteWhatTensorBoardsWriterWrites) {
  const TemporaryFolder folder;
  EventFile file(fixed_options(folder.path()));
  file.add_code("config/text_summary", 10, "run {\n  seed: 1\n}");
  const ScalarValue first[] = {{"loss", 2.5},
                               {"grad_norm", std::numeric_limits<double>::infinity()}};
  const ScalarValue second[] = {{"loss", 0.1}, {"learning_rate", 6e-4}, {"skipped_steps", 0}};
  file.add_scalars(11, first);
  file.add_scalars(12, second);
  const std::string golden = contents_of(std::filesystem::path(FLASHSHARD_TEST_DATA) /
                                         "runtime/metrics/golden/events.tfevents");
  ASSERT_FALSE(golden.empty());
  EXPECT_EQ(contents_of(file.path()), golden);
}

TEST(EventFile, IsNamedAfterTimeHostAndProcess) {
  const TemporaryFolder folder;
  const EventFile file(fixed_options(folder.path()));
  EXPECT_EQ(file.path(), folder / "events.out.tfevents.1700000000.host.42");
  const EventFile again(fixed_options(folder.path()));
  EXPECT_EQ(again.path(), folder / "events.out.tfevents.1700000000.host.42.1");
  const EventFile by_itself({folder.path()});
  EXPECT_THAT(by_itself.path().filename().string(),
              MatchesRegex("events\\.out\\.tfevents\\.[0-9]+\\..+\\." + std::to_string(getpid())));
}

TEST(TensorboardScalars, AreThoseOfTheStep) {
  StepMetrics metrics;
  metrics.loss = 2.5;
  metrics.tokens_per_second = 100.0;
  const auto tags_of = [](const std::vector<ScalarValue>& scalars) {
    std::vector<std::string> tags;
    for (const ScalarValue& scalar : scalars) tags.emplace_back(scalar.tag);
    return tags;
  };
  EXPECT_THAT(tags_of(tensorboard_scalars(metrics)),
              ElementsAre("loss", "grad_norm", "learning_rate", "tps", "skipped_steps", "step_ms",
                          "peak_bytes"));
  EXPECT_EQ(tensorboard_scalars(metrics)[0].value, 2.5);
  EXPECT_EQ(tensorboard_scalars(metrics)[3].value, 100.0);
  metrics.health = {{"lost_updates", 7}};
  EXPECT_EQ(tensorboard_scalars(metrics).back().tag, "health/lost_updates");
  EXPECT_EQ(tensorboard_scalars(metrics).back().value, 7.0);
  metrics.validation_loss = 2.25;
  EXPECT_EQ(tensorboard_scalars(metrics).back().tag, "validation_loss");
  EXPECT_EQ(tensorboard_scalars(metrics).back().value, 2.25);
}

TEST(EventFile, EndsAfterAWholeRecordOnAFullDisk) {
  const TemporaryFolder folder;
  EventFile file(fixed_options(folder.path()));
  const std::string before = contents_of(file.path());
  const ScalarValue loss[] = {{"loss", 2.5}};
  {
    const FileSizeLimit limit(before.size() + 10);
    EXPECT_EQ(error_of([&] { file.add_scalars(11, loss); }).code(), ExitCode::kOutOfSpace);
  }
  EXPECT_EQ(contents_of(file.path()), before);
}

TEST(EventFile, SaysWhichFolderIsMissing) {
  const TemporaryFolder folder;
  const Error error = error_of([&] { EventFile file(fixed_options(folder / "missing")); });
  EXPECT_EQ(error.code(), ExitCode::kUsage);
  EXPECT_THAT(error.what(), HasSubstr("missing/events.out.tfevents"));
}

}  // namespace
}  // namespace flashshard::metrics
