// A checkpoint as one GGUF file for llama.cpp, with that program's names, its order of rows in the
// query and key projections of Llama, and its vocabulary metadata.
#pragma once

#include "runtime/exchange/exported_model.h"

namespace flashshard::exchange {

inline constexpr const char* kGgufFile = "model.gguf";

/// Writes `request.output`/model.gguf. Matrices have request.dtype, norms and biases F32 (of a bf16
/// export: the bf16 values), as llama.cpp wants them. Memory, completeness and errors are those of
/// export_hugging_face; in addition kUsage for a model or a tokenizer that llama.cpp has no
/// counterpart of.
ExportResult export_gguf(const ExportRequest& request);

}  // namespace flashshard::exchange
