// A Hugging Face model folder as a checkpoint, to evaluate, to generate from, and for a run to
// start with (model.initialize_from).
#pragma once

#include <string>
#include <vector>

#include "kernels/tensor.h"
#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/hash.h"
#include "runtime/model/llama_options.h"

namespace flashshard::exchange {

struct ImportRequest {
  std::string folder;  // config.json, *.safetensors, the tokenizer's files
  /// A folder that does not exist yet. It becomes like a run's: checkpoints/step-00000000 and
  /// tokenizer/.
  std::string output;
  DType dtype = DType::kBF16;   // model.dtype of the checkpoint
  int master_weight_bits = 24;  // of matrices and embeddings in a bf16 model: 24, 32 or 0
  checkpoint::FileSystem* file_system = &checkpoint::posix_file_system();
};

struct ImportResult {
  std::string path;  // of the step folder
  LlamaOptions model;
  int64_t parameters = 0;
  checkpoint::LogicalHash hash;
  std::string tokenizer;  // its kind; empty: none was found
  std::vector<std::string> warnings;
};

/// Weights are BF16, F16 or F32, in one file or several with an index; they become masters of
/// `master_weight_bits`, rounded to nearest. Nothing is held but pieces of about a mebibyte; the
/// folder appears when it is complete. Throws Error: kCheckpoint (config.json or the files are
/// damaged or of a model that this program does not have: file, tensor and field are named), kUsage
/// (no such folder, the output exists), kOutOfSpace. A tokenizer that cannot be used is left aside
/// with a warning.
ImportResult import_hugging_face(const ImportRequest& request);

}  // namespace flashshard::exchange
