// What can be combined with what: one table of refusals. Validation, the refusal's words, the
// tables of docs/sharding.md and the tests come from it.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "optim/sharding.h"

namespace flashshard {

/// One refused combination, in the names of the settings.
struct Refusal {
  std::string_view combination;
  std::string_view reason;
  std::string_view remedy;
  bool (*applies)(const Sharding& sharding);
};

std::span<const Refusal> refusals();

/// The first refusal that applies; null where the combination is legal.
const Refusal* refusal_of(const Sharding& sharding);

/// Throws Error(kUsage) with combination, reason and remedy.
void require_legal(const Sharding& sharding, const std::string& where);

/// Both tables of docs/sharding.md, in Markdown: what is legal at which stage, and the refusals.
std::string legality_markdown();

}  // namespace flashshard
