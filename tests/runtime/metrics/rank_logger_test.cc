// Which messages of which rank go where.
#include "runtime/metrics/rank_logger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/runtime/metrics/temporary_folder.h"

namespace flashshard::metrics {
namespace {

using flashshard::testing::contents_of;
using flashshard::testing::error_of;
using flashshard::testing::TemporaryFolder;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

/// A rank with its streams in files.
class Rank {
 public:
  /// `log_target`: what the log file is a link to; empty: a file of its own.
  explicit Rank(int rank, const std::string& log_target = {})
      : out_(std::fopen((folder_ / "out").c_str(), "w")),
        error_(std::fopen((folder_ / "err").c_str(), "w")),
        console_(out_, error_) {
    if (!log_target.empty()) std::filesystem::create_symlink(log_target, log_path());
    logger_ = make_rank_logger({rank, log_path()}, console_);
  }
  ~Rank() {
    std::fclose(out_);
    std::fclose(error_);
  }
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  spdlog::logger& logger() { return *logger_; }
  std::string out() const { return contents_of(folder_ / "out"); }
  std::string error() const { return contents_of(folder_ / "err"); }
  std::string log() const { return contents_of(log_path()); }
  std::filesystem::path log_path() const { return folder_ / "rank.log"; }

 private:
  TemporaryFolder folder_;
  std::FILE* out_;
  std::FILE* error_;
  Console console_;
  std::shared_ptr<spdlog::logger> logger_;
};

void say_everything(spdlog::logger& logger) {
  logger.debug("details");
  logger.info("step:  1");
  logger.warn("a slow disk");
  logger.error("a full disk");
}

TEST(RankLogger, OfRankZeroPrintsNewsAsTheyAre) {
  Rank rank(0);
  say_everything(rank.logger());
  EXPECT_EQ(rank.out(), "step:  1\n");
  EXPECT_EQ(rank.error(), "[rank 0] warning: a slow disk\n[rank 0] error: a full disk\n");
}

TEST(RankLogger, OfOtherRanksPrintsTroubleOnly) {
  Rank rank(3);
  say_everything(rank.logger());
  EXPECT_EQ(rank.out(), "");
  EXPECT_EQ(rank.error(), "[rank 3] warning: a slow disk\n[rank 3] error: a full disk\n");
}

TEST(RankLogger, WritesEverythingWithTimeAndLevelIntoTheFileAtOnce) {
  Rank rank(3);
  say_everything(rank.logger());
  const std::string time = "20..-..-..T..:..:......[+-]..:..";
  EXPECT_THAT(rank.log(),
              MatchesRegex(time + " debug details\n" + time + " info step:  1\n" + time +
                           " warning a slow disk\n" + time + " error a full disk\n"));
}

TEST(RankLogger, AppendsToTheLogOfAnEarlierProcess) {
  const TemporaryFolder folder;
  Console console(stderr, stderr);
  for (const char* text : {"before", "after"}) {
    make_rank_logger({1, folder / "rank.log"}, console)->info(text);
  }
  EXPECT_THAT(contents_of(folder / "rank.log"), MatchesRegex(".*before\n.*after\n"));
}

TEST(RankLogger, SaysWhichFileItCannotOpen) {
  const TemporaryFolder folder;
  Console console(stderr, stderr);
  const Error error = error_of([&] {
    make_rank_logger({0, folder / "missing/rank.log"}, console);
  });
  EXPECT_EQ(error.code(), ExitCode::kUsage);
  EXPECT_THAT(error.what(), HasSubstr("missing/rank.log"));
}

TEST(RankLogger, WarnsOnceWhenTheLogFileCannotGrow) {
  Rank rank(0, "/dev/full");
  for (int step = 1; step <= 3; ++step) rank.logger().info("step: {}", step);
  EXPECT_EQ(rank.out(), "step: 1\nstep: 2\nstep: 3\n");
  const std::string error = rank.error();
  EXPECT_THAT(error, StartsWith("[rank 0] warning: the log file stays behind: "));
  EXPECT_EQ(std::count(error.begin(), error.end(), '\n'), 1);
}

}  // namespace
}  // namespace flashshard::metrics
