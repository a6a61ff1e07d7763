#include "runtime/exchange/json_text.h"

namespace flashshard::exchange {

std::optional<nlohmann::json> parse_json(std::string_view text) {
  constexpr int kDeepest = 64;
  bool too_deep = false;
  auto value = nlohmann::json::parse(
      text,
      [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
        too_deep = too_deep || depth > kDeepest;
        return !too_deep;
      },
      /*allow_exceptions=*/false);
  if (too_deep || value.is_discarded()) return std::nullopt;
  return value;
}

}  // namespace flashshard::exchange
