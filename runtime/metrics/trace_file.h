// One step of one rank as Chrome trace events ("Trace Event Format", complete events), which
// Perfetto (ui.perfetto.dev) and chrome://tracing draw.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "kernels/traced_backend.h"

namespace flashshard::metrics {

/// The file's text: microseconds of the host's monotonic clock, so files of ranks on one host fit
/// together; process = rank.
std::string trace_json(std::span<const TraceEvent> events, int rank, std::string_view host);

/// Makes the folder around it and replaces the file. Throws Error(kOutOfSpace or kUsage).
void write_trace(const std::filesystem::path& path, std::span<const TraceEvent> events, int rank,
                 std::string_view host);

}  // namespace flashshard::metrics
