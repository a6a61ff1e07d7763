// What every exporter needs of a checkpoint: the model's shape, its weights as numbers, and its
// tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "runtime/checkpoint/master_reader.h"
#include "runtime/data/tokenizer.h"
#include "runtime/exchange/model_tensors.h"
#include "runtime/exchange/output_folder.h"
#include "runtime/model/llama_options.h"

namespace flashshard::exchange {

struct ExportRequest {
  std::string checkpoint;  // a step folder, a checkpoints folder or a run's folder
  std::string output;      // a folder that does not exist yet
  /// kBF16: the weights that the model computes with. kFP32: the masters, exactly.
  DType dtype = DType::kBF16;
  uint64_t shard_bytes = 5'000'000'000;  // of a Hugging Face weight file, its header aside
  bool tokenizer = true;                 // false: leave the tokenizer out
  checkpoint::FileSystem* file_system = &checkpoint::posix_file_system();
};

struct ExportResult {
  int64_t tensors = 0;
  int64_t parameters = 0;
  uint64_t bytes = 0;  // of weights
  int files = 0;       // of weights
};

class ExportedModel {
 public:
  /// Reads the manifest. Throws Error(kCheckpoint, kUsage).
  explicit ExportedModel(const ExportRequest& request);

  const LlamaOptions& options() const { return options_; }
  const std::vector<ModelTensor>& tensors() const { return tensors_; }
  int64_t sequence_length() const { return sequence_length_; }
  const std::string& name() const { return checkpoint_.manifest().run.model; }
  /// Of the data that it was trained on; nothing where nobody recorded it.
  const std::optional<data::TokenizerIdentity>& tokenizer() const { return tokenizer_; }
  std::filesystem::path tokenizer_folder() const;

  /// Rows of a parameter in the type asked for; good until the next call.
  std::span<const std::byte> read(const ModelTensor& tensor, RowRange rows);
  /// The same as fp32 whatever the type: of a bf16 export the bf16 values.
  std::span<const float> read_floats(const ModelTensor& tensor, RowRange rows);
  /// After all tensors: throws Error(kCheckpoint) when their bytes are not those that were saved.
  void require_whole() const;

 private:
  checkpoint::WeightValue value() const {
    return dtype_ == DType::kFP32 ? checkpoint::WeightValue::kMaster
                                  : checkpoint::WeightValue::kModel;
  }

  DType dtype_;
  checkpoint::CheckpointReader checkpoint_;
  LlamaOptions options_;
  std::vector<ModelTensor> tensors_;
  int64_t sequence_length_ = 0;
  std::string data_path_;
  std::optional<data::TokenizerIdentity> tokenizer_;
  std::unique_ptr<Backend> backend_;
  checkpoint::MasterReader masters_;
  std::vector<float> floats_;
  std::vector<uint16_t> halves_;
};

}  // namespace flashshard::exchange
