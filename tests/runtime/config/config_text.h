// A minimal valid configuration that the tests of this folder change.
#pragma once

#include <string>
#include <vector>

#include "kernels/error.h"
#include "runtime/config/run_config.h"

namespace flashshard::test {

inline const std::string kMinimalText = R"(run { dir: "runs/a" }
model { preset: "tiny" }
data { path: "data/a" }
train { steps: 100 sequence_length: 32 micro_batch: 2 global_batch: 8 }
)";

inline proto::RunConfig parsed(const std::string& text, std::vector<std::string> overrides = {}) {
  return parse_run_config(text, "a.textproto", overrides);
}

/// The message of the refusal, which must be of kind kUsage and one line; "accepted" when there is
/// none.
inline std::string refusal(const std::string& text, std::vector<std::string> overrides = {}) {
  try {
    parsed(text, std::move(overrides));
  } catch (const Error& error) {
    const std::string message = error.what();
    if (error.code() != ExitCode::kUsage) return "wrong exit code: " + message;
    if (message.find('\n') != std::string::npos) return "more than one line: " + message;
    return message;
  }
  return "accepted";
}

/// The same for overrides of the minimal configuration.
inline std::string refused_override(std::vector<std::string> overrides) {
  return refusal(kMinimalText, std::move(overrides));
}

}  // namespace flashshard::test
