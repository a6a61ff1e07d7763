// The tables as they look on the screen.
#include "runtime/metrics/tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/runtime/metrics/temporary_folder.h"

namespace flashshard::metrics {
namespace {

using flashshard::testing::error_of;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(TextTable, AlignsColumnsUnderTheirHeaders) {
  TextTable table("Prices", {{"thing", Alignment::kLeft}, {"price", Alignment::kRight}});
  table.add_row({"tea", "1"});
  table.add_row({"café au lait", "12.50"});
  EXPECT_EQ(table.render(),
            "Prices\n"
            "  thing         price\n"
            "  ------------  -----\n"
            "  tea               1\n"
            "  café au lait  12.50\n");
}

TEST(TextTable, LeavesNoSpacesAtTheEndOfALine) {
  TextTable table("Empty", {{"", Alignment::kLeft}, {"", Alignment::kLeft}});
  table.add_row({"a", ""});
  table.add_row({"bb", "value"});
  EXPECT_EQ(table.render(), "Empty\n  a\n  bb  value\n");
}

TEST(TextTable, RefusesARowOfTheWrongLength) {
  TextTable table("Prices", {{"thing", Alignment::kLeft}});
  EXPECT_EQ(error_of([&] { table.add_row({"tea", "1"}); }).code(), ExitCode::kInternal);
}

TEST(SettingsTable, HasTwoColumns) {
  const Setting settings[] = {{"train.steps", "200"}, {"optimizer.learning_rate", "0.0006"}};
  EXPECT_EQ(settings_table(settings),
            "Settings\n"
            "  train.steps              200\n"
            "  optimizer.learning_rate  0.0006\n");
}

TEST(ModelTable, TellsSizeAndTokensPerStep) {
  ModelSummary model;
  model.name = "llama-1m";
  model.dtype = "BF16";
  model.layers = 4;
  model.hidden_size = 128;
  model.attention_heads = 4;
  model.key_value_heads = 2;
  model.vocabulary = 257;
  model.parameters = 1300000;
  model.sequence_length = 256;
  model.global_batch = 32;
  model.ranks = 2;
  EXPECT_EQ(model.tokens_per_step(), 8192);
  EXPECT_EQ(model_table(model),
            "Model\n"
            "  name             llama-1m\n"
            "  parameters       1,300,000\n"
            "  layers           4\n"
            "  hidden size      128\n"
            "  attention heads  4 (2 for keys and values)\n"
            "  vocabulary       257\n"
            "  dtype            BF16\n"
            "  tokens per step  8,192 = 32 sequences of 256, on 2 ranks\n");
  model.ranks = 1;
  EXPECT_THAT(model_table(model), HasSubstr("on 1 rank\n"));
}

TEST(MemoryTable, ShowsBytesPerParameterOfTheClassesInUse) {
  MemoryTable predicted;
  predicted[MemoryClass::kWeights] = 2 << 20;
  predicted[MemoryClass::kMomentum] = 1 << 19;
  MemoryTable tagged = predicted;
  tagged[MemoryClass::kActivations] = 3 << 20;
  EXPECT_EQ(memory_table(predicted, tagged, 1 << 20),
            "Memory of this rank\n"
            "  class            predicted      tagged  bytes/parameter\n"
            "  --------------  ----------  ----------  ---------------\n"
            "  weights           2.00 MiB    2.00 MiB            2.000\n"
            "  momentum        512.00 KiB  512.00 KiB            0.500\n"
            "  activations            0 B    3.00 MiB            3.000\n"
            "  training state    2.50 MiB    2.50 MiB            2.500\n"
            "  total             2.50 MiB    5.50 MiB            5.500\n");
}

TEST(MemoryTable, RefusesAModelWithoutParameters) {
  EXPECT_EQ(error_of([] { memory_table({}, {}, 0); }).code(), ExitCode::kInternal);
}

TEST(SummaryTable, TellsHowTheRunEnded) {
  RunSummary summary;
  summary.outcome = "done";
  summary.steps = 1000;
  summary.tokens = 2048000;
  summary.seconds = 443.2;
  summary.tokens_per_second = 4621.0;
  summary.loss = 1.41239;
  summary.validation_loss = 1.48768;
  summary.peak_bytes = 123456789;
  summary.checkpoint = "runs/quickstart/checkpoints/step-00001000";
  EXPECT_EQ(summary_table(summary),
            "Summary\n"
            "  outcome            done\n"
            "  steps              1,000\n"
            "  tokens             2,048,000\n"
            "  time               7:23\n"
            "  tokens per second  4,621\n"
            "  loss               1.4124\n"
            "  validation loss    1.4877\n"
            "  peak memory        117.74 MiB\n"
            "  checkpoint         runs/quickstart/checkpoints/step-00001000\n");
}

TEST(SummaryTable, LeavesOutWhatDidNotHappen) {
  RunSummary summary;
  summary.steps = 5;
  summary.skipped_steps = 2;
  EXPECT_THAT(summary_table(summary), HasSubstr("5 (2 skipped)\n"));
  EXPECT_THAT(summary_table(summary), HasSubstr("checkpoint         none\n"));
  EXPECT_THAT(summary_table(summary), Not(HasSubstr("validation")));
}

}  // namespace
}  // namespace flashshard::metrics
