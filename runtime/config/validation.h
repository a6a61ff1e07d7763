// What a configuration must satisfy: the range of each field (proto/run.proto) and the rules
// between fields (a table here, which docs/configuration.md shows too).
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "proto/run.pb.h"
#include "runtime/config/text_reader.h"

namespace flashshard::config {

/// A rule between fields. `violation` returns what is wrong with the values, naming their paths, or
/// nothing.
struct FieldRule {
  std::string_view statement;  // for the reference
  std::optional<std::string> (*violation)(const proto::RunConfig& config);
};
std::span<const FieldRule> field_rules();

/// Required fields are set, set fields are in range, strings are one line of UTF-8. Throws
/// Error(kUsage). `source`: the file's name.
void require_ranges(const proto::RunConfig& config, const Origins& origins,
                    const std::string& source);

/// The rules between fields; ranges must hold. Throws Error(kUsage).
void require_rules(const proto::RunConfig& config, const std::string& source);

}  // namespace flashshard::config
