#include "runtime/write_text.h"

#include <fmt/format.h>

#include <array>
#include <vector>

#include "kernels/error.h"

namespace flashshard {

WrittenText write_text(Model& model, data::Tokenizer& tokenizer, const GenerationRequest& request,
                       const std::function<void(std::string_view)>& on_text) {
  const data::TokenizerIdentity& identity = tokenizer.identity();
  if (identity.vocab_size > model.vocabulary_size()) {
    throw Error(ExitCode::kUsage,
                fmt::format("the tokenizer's vocabulary of {} tokens does not fit the model's {}",
                            identity.vocab_size, model.vocabulary_size()),
                "--tokenizer", "give the tokenizer that the model was trained with");
  }
  const std::string_view prompt = request.prompt;
  std::vector<int32_t> tokens = tokenizer.encode(std::array{prompt}).front();
  if (tokens.empty()) {
    throw Error(ExitCode::kUsage, "a prompt of no tokens", "--prompt",
                "give at least one character");
  }
  WrittenText written;
  written.text = request.prompt;
  const auto show = [&](const std::string& text) {
    written.text += text;
    if (on_text && !text.empty()) on_text(text);
  };
  data::TextStream stream(tokenizer, tokens);
  GenerationOptions options = request.options;
  options.vocabulary = identity.vocab_size;
  options.end_token = identity.end_of_document;
  written.times = extend_text(model, tokens, options, [&](int32_t token) {
    written.ended = token == identity.end_of_document;
    if (!written.ended) show(stream.push(token));
  });
  show(stream.finish());
  return written;
}

}  // namespace flashshard
