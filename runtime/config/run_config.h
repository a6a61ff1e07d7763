// The configuration of a run: a text-format file (proto/run.proto), `path=value` overrides,
// built-in shapes and defaults, resolved into one RunConfig in which every field is set and every
// rule holds.
//
// Precedence, strongest first: overrides (the last one of a path wins), the file, the model's
// preset, defaults. Every refusal is an Error with ExitCode::kUsage and names the field's path and
// the place it was set at.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "proto/run.pb.h"

namespace flashshard {

/// Largest configuration file that is read, in bytes.
constexpr size_t kMaximumConfigBytes = size_t{1} << 20;

/// Reads, resolves and validates. `overrides` are "path=value", a string's quotes are optional.
proto::RunConfig load_run_config(const std::string& path, std::span<const std::string> overrides);

/// The same from text; `source` stands for the file's name in messages.
proto::RunConfig parse_run_config(std::string_view text, const std::string& source,
                                  std::span<const std::string> overrides);

/// Text format with every field, defaults included. parse_run_config gives the same config back.
std::string to_text(const proto::RunConfig& config);

/// The same as an object of sections; enumerators are strings, numbers are numbers.
nlohmann::ordered_json to_json(const proto::RunConfig& config);

struct ConfigDifference {
  std::string path;    // "optimizer.learning_rate"
  std::string before;  // in text format
  std::string after;
  bool fixed_at_resume = false;  // a checkpoint of `before` cannot go on with `after`
};
/// Fields in which two configurations differ, in schema order, repeated ones last; an unset field
/// counts as its default.
std::vector<ConfigDifference> differences(const proto::RunConfig& before,
                                          const proto::RunConfig& after);

}  // namespace flashshard
