// A prompt to text: tokens in, tokens out, and characters as they are complete.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "runtime/data/tokenizer.h"
#include "runtime/generate.h"
#include "runtime/model/model.h"

namespace flashshard {

struct WrittenText {
  std::string text;    // the prompt and what was added
  bool ended = false;  // the model ended the document before the tokens were used up
  GenerationTimes times;
};

/// Continues `request.prompt` with ids of the tokenizer until request.tokens are added or the model
/// ends the document; `on_text` sees each piece as it comes, in whole characters where the
/// tokenizer knows characters. Throws Error(kUsage): a prompt of no tokens, a tokenizer whose
/// vocabulary the model does not have.
WrittenText write_text(Model& model, data::Tokenizer& tokenizer, const GenerationRequest& request,
                       const std::function<void(std::string_view)>& on_text = {});

}  // namespace flashshard
