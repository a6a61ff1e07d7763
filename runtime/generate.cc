#include "runtime/generate.h"

#include <algorithm>
#include <chrono>
#include <span>

namespace flashshard {
namespace {

std::vector<float> read_latest(Model& model, std::span<const int32_t> text, int64_t most) {
  return model.next_token_logits(text.last(std::min(text.size(), static_cast<size_t>(most))));
}

/// Scores behind a text of which the model has read all but the last token.
std::vector<float> read_last_token(Model& model, std::span<const int32_t> text) {
  const int64_t limit = model.maximum_sequence_length();
  if (model.remembered_tokens() < limit) return model.continue_with(text.back());
  return read_latest(model, text, std::max(int64_t{1}, limit / 2));
}

}  // namespace

GenerationTimes extend_text(Model& model, std::vector<int32_t>& text,
                            const GenerationOptions& options,
                            const std::function<void(int32_t)>& on_token) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  GenerationTimes times;
  auto start = Clock::now();
  std::vector<float> logits = read_latest(model, text, model.maximum_sequence_length());
  times.prompt_seconds = seconds_since(start);
  start = Clock::now();
  for (int64_t i = 0; i < options.tokens; ++i) {
    if (i > 0) logits = read_last_token(model, text);
    const auto choices = options.vocabulary > 0
                             ? std::span(logits).first(static_cast<size_t>(options.vocabulary))
                             : std::span(logits);
    text.push_back(sample_token(choices, options.sampling, text.size()));
    times.tokens = i;
    if (on_token) on_token(text.back());
    if (text.back() == options.end_token) break;
  }
  times.seconds = seconds_since(start);
  return times;
}

}  // namespace flashshard
