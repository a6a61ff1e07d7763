#include "runtime/generate.h"

#include <algorithm>
#include <vector>

#include "kernels/error.h"

namespace flashshard {

std::string generate(Model& model, const GenerationRequest& request,
                     const std::function<void(char)>& on_token) {
  if (model.vocabulary_size() != 256) {
    throw Error(ExitCode::kUsage, "this model's vocabulary is not bytes",
                std::to_string(model.vocabulary_size()) + " tokens");
  }
  if (request.prompt.empty()) {
    throw Error(ExitCode::kUsage, "a prompt of no bytes", "--prompt",
                "give at least one character");
  }
  std::string text = request.prompt;
  std::vector<int32_t> window;
  for (int64_t i = 0; i < request.tokens; ++i) {
    const auto context =
        std::min(text.size(), static_cast<size_t>(model.maximum_sequence_length()));
    window.clear();
    for (size_t k = text.size() - context; k < text.size(); ++k) {
      window.push_back(static_cast<unsigned char>(text[k]));
    }
    const auto logits = model.next_token_logits(window);
    text.push_back(static_cast<char>(sample_token(logits, request.sampling, text.size())));
    if (on_token) on_token(text.back());
  }
  return text;
}

}  // namespace flashshard
