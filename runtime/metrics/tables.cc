// Two spaces between columns, a rule under the headers, nothing else: readable in a log and easy to
// cut.
#include "runtime/metrics/tables.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "kernels/error.h"
#include "runtime/metrics/memory_report.h"
#include "runtime/metrics/number_format.h"

namespace flashshard::metrics {
namespace {

/// Code points of UTF-8 text: bytes that do not continue a character.
size_t characters(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; }));
}

std::string padded(const std::string& cell, size_t width, Alignment alignment) {
  const std::string spaces(width - characters(cell), ' ');
  return alignment == Alignment::kLeft ? cell + spaces : spaces + cell;
}

void add_line(std::string& text, const std::vector<std::string>& cells) {
  std::string line;
  for (const std::string& cell : cells) line += "  " + cell;
  line.erase(line.find_last_not_of(' ') + 1);
  text += line + "\n";
}

/// Two columns without headers: names on the left, values on the right.
class FactTable {
 public:
  explicit FactTable(std::string title)
      : table_(std::move(title), {{"", Alignment::kLeft}, {"", Alignment::kLeft}}) {}
  void add(std::string name, std::string value) {
    table_.add_row({std::move(name), std::move(value)});
  }
  std::string render() const { return table_.render(); }

 private:
  TextTable table_;
};

std::string per_parameter(int64_t bytes, int64_t parameters) {
  return fmt::format("{:.3f}", static_cast<double>(bytes) / static_cast<double>(parameters));
}

}  // namespace

TextTable::TextTable(std::string title, std::vector<TableColumn> columns)
    : title_(std::move(title)), columns_(std::move(columns)) {}

void TextTable::add_row(std::vector<std::string> cells) {
  if (cells.size() != columns_.size()) {
    throw Error(ExitCode::kInternal, "a table row with the wrong number of cells", title_);
  }
  rows_.push_back(std::move(cells));
}

std::vector<size_t> TextTable::widths() const {
  std::vector<size_t> widths;
  for (size_t column = 0; column < columns_.size(); ++column) {
    size_t width = characters(columns_[column].header);
    for (const auto& row : rows_) width = std::max(width, characters(row[column]));
    widths.push_back(width);
  }
  return widths;
}

std::string TextTable::render() const {
  const std::vector<size_t> column_widths = widths();
  const auto line = [&](auto&& cell_of) {
    std::vector<std::string> cells;
    for (size_t i = 0; i < columns_.size(); ++i) {
      cells.push_back(padded(cell_of(i), column_widths[i], columns_[i].alignment));
    }
    return cells;
  };
  std::string text = title_ + "\n";
  const bool has_headers = std::any_of(columns_.begin(), columns_.end(),
                                       [](const TableColumn& c) { return !c.header.empty(); });
  if (has_headers) {
    add_line(text, line([&](size_t i) { return columns_[i].header; }));
    add_line(text, line([&](size_t i) { return std::string(column_widths[i], '-'); }));
  }
  for (const auto& row : rows_) add_line(text, line([&](size_t i) { return row[i]; }));
  return text;
}

std::string settings_table(std::span<const Setting> settings) {
  FactTable table("Settings");
  for (const Setting& setting : settings) table.add(setting.path, setting.value);
  return table.render();
}

std::string model_table(const ModelSummary& model) {
  FactTable table("Model");
  table.add("name", model.name);
  table.add("parameters", with_thousands(model.parameters));
  table.add("layers", with_thousands(model.layers));
  table.add("hidden size", with_thousands(model.hidden_size));
  table.add("attention heads", fmt::format("{} ({} for keys and values)", model.attention_heads,
                                           model.key_value_heads));
  table.add("vocabulary", with_thousands(model.vocabulary));
  table.add("dtype", model.dtype);
  table.add(
      "tokens per step",
      fmt::format("{} = {} sequences of {}, on {} rank{}", with_thousands(model.tokens_per_step()),
                  with_thousands(model.global_batch), with_thousands(model.sequence_length),
                  model.ranks, model.ranks == 1 ? "" : "s"));
  return table.render();
}

std::string memory_table(const MemoryTable& predicted, const MemoryTable& tagged,
                         int64_t parameters) {
  if (parameters < 1) throw Error(ExitCode::kInternal, "a memory table of no parameters");
  TextTable table("Memory of this rank", {{"class", Alignment::kLeft},
                                          {"predicted", Alignment::kRight},
                                          {"tagged", Alignment::kRight},
                                          {"bytes/parameter", Alignment::kRight}});
  const auto add = [&](std::string_view name, int64_t formula, int64_t held) {
    table.add_row({std::string(name), format_bytes(formula), format_bytes(held),
                   per_parameter(held, parameters)});
  };
  for (size_t i = 0; i < kMemoryClasses; ++i) {
    const auto memory_class = static_cast<MemoryClass>(i);
    if (predicted[memory_class] == 0 && tagged[memory_class] == 0) continue;
    add(name_of(memory_class), predicted[memory_class], tagged[memory_class]);
  }
  add("training state", training_state_bytes(predicted), training_state_bytes(tagged));
  add("total", predicted.total(), tagged.total());
  return table.render();
}

std::string summary_table(const RunSummary& summary) {
  FactTable table("Summary");
  table.add("outcome", summary.outcome);
  table.add("steps", summary.skipped_steps == 0
                         ? with_thousands(summary.steps)
                         : fmt::format("{} ({} skipped)", with_thousands(summary.steps),
                                       with_thousands(summary.skipped_steps)));
  table.add("tokens", with_thousands(summary.tokens));
  table.add("time", format_duration(summary.seconds));
  table.add("tokens per second", with_thousands(summary.tokens_per_second, 0));
  table.add("loss", fmt::format("{:.4f}", summary.loss));
  if (summary.validation_loss) {
    table.add("validation loss", fmt::format("{:.4f}", *summary.validation_loss));
  }
  table.add("peak memory", format_bytes(summary.peak_bytes));
  table.add("checkpoint", summary.checkpoint.empty() ? "none" : summary.checkpoint);
  return table.render();
}

}  // namespace flashshard::metrics
