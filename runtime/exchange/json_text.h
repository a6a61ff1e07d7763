// JSON from files of other programs.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

namespace flashshard::exchange {

/// Nothing for a text that is no JSON, or is nested deeper than any file that is read here (walking
/// a value takes stack for every level).
std::optional<nlohmann::json> parse_json(std::string_view text);

}  // namespace flashshard::exchange
