// The tables a run prints: settings, model and bytes per parameter at its start, a summary at its
// end.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "optim/memory.h"

namespace flashshard::metrics {

enum class Alignment { kLeft, kRight };

struct TableColumn {
  std::string header;
  Alignment alignment = Alignment::kLeft;
};

/// A table of plain text: a title, a line of headers (left out when all are empty), rows. Widths
/// count characters of UTF-8. Every row has a cell per column; throws Error(kInternal) otherwise.
class TextTable {
 public:
  TextTable(std::string title, std::vector<TableColumn> columns);
  void add_row(std::vector<std::string> cells);
  /// Lines end with a newline and have no spaces before it.
  std::string render() const;

 private:
  std::vector<size_t> widths() const;

  std::string title_;
  std::vector<TableColumn> columns_;
  std::vector<std::vector<std::string>> rows_;
};

struct Setting {
  std::string path;   // "optimizer.learning_rate"
  std::string value;  // as a config would have it
};
std::string settings_table(std::span<const Setting> settings);

struct ModelSummary {
  std::string name;
  std::string dtype;
  int64_t layers = 0;
  int64_t hidden_size = 0;
  int64_t attention_heads = 0;
  int64_t key_value_heads = 0;
  int64_t vocabulary = 0;
  int64_t parameters = 0;
  int64_t sequence_length = 0;
  int64_t global_batch = 0;  // sequences a step
  int64_t ranks = 1;

  int64_t tokens_per_step() const { return sequence_length * global_batch; }
};
std::string model_table(const ModelSummary& model);

/// Predicted and tagged bytes of this rank by class, and tagged bytes per parameter of the whole
/// model. Classes that hold nothing are left out; the last rows are the training state alone and
/// everything. `parameters`: at least 1.
std::string memory_table(const MemoryTable& predicted, const MemoryTable& tagged,
                         int64_t parameters);

struct RunSummary {
  std::string outcome;  // "done", "stopped by SIGUSR1", ...
  int64_t steps = 0;
  int64_t skipped_steps = 0;
  int64_t tokens = 0;  // since the run began
  double seconds = 0;  // in this process
  double tokens_per_second = 0;
  double loss = 0;  // of the last step
  std::optional<double> validation_loss;
  int64_t peak_bytes = 0;
  std::string checkpoint;  // path of the last one; empty: none
};
std::string summary_table(const RunSummary& summary);

}  // namespace flashshard::metrics
