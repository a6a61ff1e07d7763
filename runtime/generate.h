// Tokens from a trained model, one after the other. The prompt is read at once; of what follows
// the model reads each token once (Model::continue_with).
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

struct GenerationTimes {
  double prompt_seconds = 0;  // until the scores of the first new token
  int64_t tokens = 0;         // added after that one
  double seconds = 0;         // for these

  double tokens_per_second() const {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
  }
};

/// Appends sampled tokens to `text`, which is not empty; `on_token` sees each as it comes. With S =
/// maximum_sequence_length() the model sees the last S tokens of the prompt. When it remembers S
/// tokens, it forgets all and reads the latest max(1, S / 2) again, which take positions 0 on: from
/// then on a token depends on the S / 2 to S latest ones. The model must be made for generation.
GenerationTimes extend_text(Model& model, std::vector<int32_t>& text,
                            const GenerationOptions& options,
                            const std::function<void(int32_t)>& on_token = {});

struct GenerationRequest {
  std::string prompt;
  GenerationOptions options;
};

}  // namespace flashshard
