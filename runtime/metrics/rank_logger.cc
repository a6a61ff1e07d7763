// Two spdlog sinks; a full disk silences the file after one warning and never the run.
#include "runtime/metrics/rank_logger.h"

#include <fmt/core.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/basic_file_sink.h>

#include <atomic>
#include <mutex>
#include <string_view>

#include "runtime/metrics/durable_file.h"

namespace flashshard::metrics {
namespace {

class ConsoleSink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  ConsoleSink(int rank, Console& console) : rank_(rank), console_(console) {}

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    const std::string_view text(message.payload.data(), message.payload.size());
    if (message.level >= spdlog::level::warn) {
      const char* kind = message.level == spdlog::level::warn ? "warning" : "error";
      console_.print_error(fmt::format("[rank {}] {}: {}", rank_, kind, text));
    } else if (message.level == spdlog::level::info && rank_ == 0) {
      console_.print(text);
    }
  }
  void flush_() override {}

 private:
  int rank_;
  Console& console_;
};

}  // namespace

std::shared_ptr<spdlog::logger> make_rank_logger(const RankLoggerOptions& options,
                                                 Console& console) {
  std::shared_ptr<spdlog::sinks::basic_file_sink_mt> file;
  {
    // spdlog's own error of a failed open says less, and would create missing folders.
    const AppendFile can_be_opened(options.log_file);
    file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.log_file.string());
  }
  file->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  auto logger = std::make_shared<spdlog::logger>(
      fmt::format("rank-{:05}", options.rank),
      spdlog::sinks_init_list{std::make_shared<ConsoleSink>(options.rank, console), file});
  logger->set_level(spdlog::level::debug);
  logger->flush_on(spdlog::level::debug);
  logger->set_error_handler(
      [&console, rank = options.rank,
       warned = std::make_shared<std::atomic<bool>>(false)](const std::string& what) {
        if (warned->exchange(true)) return;
        console.print_error(
            fmt::format("[rank {}] warning: the log file stays behind: {}", rank, what));
      });
  return logger;
}

}  // namespace flashshard::metrics
