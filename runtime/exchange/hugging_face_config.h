// config.json of a Hugging Face model folder, for the two families that are this project's decoder:
// LlamaForCausalLM (Llama 3.x) and Qwen2ForCausalLM (Qwen2.5: with biases of q, k and v).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/llama_options.h"

namespace flashshard::exchange {

struct HuggingFaceConfig {
  LlamaOptions model;
  /// Fields that are not known and were left aside.
  std::vector<std::string> unknown_fields;
};

/// Every field is looked at: those that shape the model are taken over, those that can only have
/// one value here are compared with it. Throws Error(kCheckpoint) naming file and field. `where` is
/// the file; the model's ranges are not checked (flashshard::validate does).
HuggingFaceConfig read_hugging_face_config(std::string_view json, const std::string& where);

struct HuggingFaceConfigWrite {
  const LlamaOptions& model;
  DType weights = DType::kBF16;    // of the weight files: kBF16 or kFP32
  int64_t sequence_length = 0;     // the positions of a model that has no limit of them
  int32_t beginning_of_text = -1;  // bos_token_id; -1: none
  int32_t end_of_document = -1;    // eos_token_id; -1: none
};
struct HuggingFaceConfigFiles {
  std::string config;             // config.json
  std::string generation_config;  // generation_config.json
};
HuggingFaceConfigFiles write_hugging_face_config(const HuggingFaceConfigWrite& write);

}  // namespace flashshard::exchange
