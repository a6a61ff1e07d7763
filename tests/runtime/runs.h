// Whole runs on in-process ranks, in a folder of their own, over a text with something to learn.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/agreement.h"
#include "runtime/checkpoint/verify.h"
#include "runtime/config/run_config.h"
#include "runtime/data/prepare.h"
#include "runtime/trainer.h"
#include "tests/optim/ranks.h"
#include "tests/runtime/metrics/temporary_folder.h"

namespace flashshard::test {

/// Text with something to learn: words from a small list in a pseudo-random order.
inline std::string text(size_t bytes) {
  const std::vector<std::string> words = {"and ",  "the ",  "lord ", "said ",
                                          "unto ", "him, ", "go ",   "out.\n"};
  std::string all;
  uint32_t state = 1;
  while (all.size() < bytes) {
    state = state * 1664525u + 1013904223u;
    all += words[state >> 29];
  }
  return all;
}

class Runs : public ::testing::Test {
 protected:
  Runs() {
    std::ofstream(folder_ / "text.txt") << text(40000);
    data::PrepareOptions options;
    options.inputs = {folder_ / "text.txt"};
    options.output = folder_ / "data";
    data::prepare(options);
  }

  proto::RunConfig config(const std::string& run, std::vector<std::string> overrides = {}) const {
    overrides.insert(overrides.begin(), {"run.dir=" + (folder_ / run).string(),
                                         "data.path=" + (folder_ / "data").string(),
                                         "run.threads=1", "run.deadline_seconds=60"});
    return load_run_config(std::string(FLASHSHARD_TEST_DATA) + "/../launch/configs/tiny.textproto",
                           overrides);
  }

  static ExitCode run(int world_size, const proto::RunConfig& config,
                      const std::string& resume = "auto") {
    ExitCode code = ExitCode::kInternal;
    std::mutex mutex;
    run_ranks(world_size, [&](Communicator& communicator) {
      const ExitCode mine = train(communicator, {config, resume});
      const std::lock_guard lock(mutex);
      code = mine;
    });
    return code;
  }

  /// The error that every rank ends with.
  static Error failure(int world_size, const proto::RunConfig& config,
                       const std::string& resume = "auto") {
    std::vector<std::string> messages;
    ExitCode code = ExitCode::kDone;
    std::mutex mutex;
    run_ranks(world_size, [&](Communicator& communicator) {
      try {
        train(communicator, {config, resume});
      } catch (const AgreedError& error) {
        const std::lock_guard lock(mutex);
        messages.emplace_back(error.what());
        code = error.code();
      }
    });
    EXPECT_EQ(messages.size(), static_cast<size_t>(world_size)) << "not every rank failed";
    for (const auto& message : messages) EXPECT_EQ(message, messages.front());
    return Error(code, messages.empty() ? "" : messages.front());
  }

  nlohmann::json status(const std::string& run, int rank) const {
    std::ifstream file(folder_ / run / "status" / ("rank-0000" + std::to_string(rank) + ".json"));
    return nlohmann::json::parse(file);
  }
  std::vector<nlohmann::json> metrics(const std::string& run) const {
    std::ifstream file(folder_ / run / "metrics.jsonl");
    std::vector<nlohmann::json> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }
  std::string hash(const std::string& run) const {
    return checkpoint::hash((folder_ / run).string()).total().hex();
  }

  testing::TemporaryFolder folder_;
};

}  // namespace flashshard::test
