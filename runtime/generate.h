// Tokens from a trained model, one after the other.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/model/model.h"
#include "runtime/model/sample.h"

namespace flashshard {

struct GenerationOptions {
  int64_t tokens = 200;  // to add
  SamplingOptions sampling;
  int64_t vocabulary = 0;  // only ids below it are chosen; 0: all that the model has
  int32_t end_token = -1;  // after it nothing is added
};

struct GenerationRequest {
  std::string prompt;
  GenerationOptions options;
};

/// Appends sampled tokens to `text`, which is not empty; `on_token` sees each as it comes. The
/// model reads at most its sequence length of the latest tokens.
void extend_text(Model& model, std::vector<int32_t>& text, const GenerationOptions& options,
                 const std::function<void(int32_t)>& on_token = {});

}  // namespace flashshard
