// Reads a configuration from text format and from `path=value`. Nothing is resolved here; the place
// where each field was set is kept for the messages of the validation.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "proto/run.pb.h"

namespace flashshard::config {

/// Where a path was set: "quickstart.textproto:12:3" or "--set".
using Origins = std::map<std::string, std::string, std::less<>>;

/// The whole file. Throws Error(kUsage): missing, unreadable, a folder, too large, binary, not
/// UTF-8.
std::string read_config_file(const std::string& path);

/// Throws Error(kUsage) for text that is binary or not UTF-8, and for control characters where
/// `multiline` is false.
void require_text(std::string_view text, const std::string& where, bool multiline);

/// Parses `text` into `config`. Throws Error(kUsage) with line and column; an unknown field or
/// enumerator with the nearest right name.
void read_text(std::string_view text, const std::string& source, proto::RunConfig& config,
               Origins& origins);

/// Applies one "path=value".
void apply_override(std::string_view assignment, proto::RunConfig& config, Origins& origins);

}  // namespace flashshard::config
