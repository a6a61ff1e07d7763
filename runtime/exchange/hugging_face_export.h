// A checkpoint as a Hugging Face model folder that transformers opens: config.json,
// generation_config.json, the weights as safetensors (with an index when they are split) and the
// tokenizer's files.
#pragma once

#include "runtime/exchange/exported_model.h"

namespace flashshard::exchange {

/// Reads the checkpoint once, in pieces of about a mebibyte. The folder appears when it is
/// complete. Throws Error: kCheckpoint (damaged, or not a model of this program), kUsage (the
/// output exists or may not be written), kOutOfSpace, kBadData (the tokenizer's files are gone).
ExportResult export_hugging_face(const ExportRequest& request);

}  // namespace flashshard::exchange
