// A rank's log: everything into logs/rank-NNNNN.log, warnings and errors of every rank on stderr,
// news of rank 0 on stdout.
#pragma once

#include <spdlog/logger.h>

#include <filesystem>
#include <memory>

#include "runtime/metrics/console.h"

namespace flashshard::metrics {

struct RankLoggerOptions {
  int rank = 0;
  std::filesystem::path log_file;  // appended to; its folder exists
};

/// Where a message goes, besides the file, which also has the time and the level:
///   info, rank 0:        stdout, as it is
///   warnings and errors: stderr, as "[rank 3] warning: ..." or "[rank 3] error: ..."
/// `console` must live as long as the logger. Throws Error(kUsage) when the file cannot be opened.
std::shared_ptr<spdlog::logger> make_rank_logger(const RankLoggerOptions& options,
                                                 Console& console);

}  // namespace flashshard::metrics
