// Text from a trained model, one token after the other. Tokens are bytes: the vocabulary of
// `prepare`.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "runtime/model/model.h"
#include "runtime/model/sample.h"

namespace flashshard {

struct GenerationRequest {
  std::string prompt;
  int64_t tokens = 200;
  SamplingOptions sampling;
};

/// Appends `tokens` sampled bytes to the prompt and returns both; `on_token` sees each new byte as
/// it comes. The model reads at most its sequence length of the latest bytes. Throws Error(kUsage):
/// an empty prompt, a vocabulary that is not bytes.
std::string generate(Model& model, const GenerationRequest& request,
                     const std::function<void(char)>& on_token = {});

}  // namespace flashshard
