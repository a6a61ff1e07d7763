#include "runtime/generate.h"

#include <algorithm>
#include <span>

namespace flashshard {

void extend_text(Model& model, std::vector<int32_t>& text, const GenerationOptions& options,
                 const std::function<void(int32_t)>& on_token) {
  const auto most = static_cast<size_t>(model.maximum_sequence_length());
  for (int64_t i = 0; i < options.tokens; ++i) {
    const auto logits = model.next_token_logits(std::span(text).last(std::min(text.size(), most)));
    const auto choices = options.vocabulary > 0
                             ? std::span(logits).first(static_cast<size_t>(options.vocabulary))
                             : std::span(logits);
    text.push_back(sample_token(choices, options.sampling, text.size()));
    if (on_token) on_token(text.back());
    if (text.back() == options.end_token) return;
  }
}

}  // namespace flashshard
