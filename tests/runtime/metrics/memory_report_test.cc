// memory.json and what the kernel says about this process.
#include "runtime/metrics/memory_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "runtime/metrics/process_memory.h"
#include "tests/runtime/metrics/temporary_folder.h"

namespace flashshard::metrics {
namespace {

using flashshard::testing::contents_of;
using flashshard::testing::error_of;
using flashshard::testing::TemporaryFolder;

/// A byte per parameter times 1, 2, 4, ... for the classes in order.
MemoryTable powers_of_two(int64_t parameters) {
  MemoryTable table;
  for (size_t i = 0; i < kMemoryClasses; ++i) table.bytes[i] = parameters << i;
  return table;
}

TEST(MemoryReport, HasTheDocumentedKeys) {
  const RankMemory ranks[] = {{powers_of_two(10), powers_of_two(20), 12345}, {}};
  const auto report = nlohmann::ordered_json::parse(memory_json(ranks, 20));
  EXPECT_EQ(report["parameters"], 20);
  ASSERT_EQ(report["ranks"].size(), 2u);
  const auto& first = report["ranks"][0];
  EXPECT_EQ(first["rank"], 0);
  EXPECT_EQ(report["ranks"][1]["rank"], 1);
  EXPECT_EQ(first["seen_from_outside"], 12345);
  const char* classes[] = {"weights", "gradients",   "accumulator", "momentum", "variance",
                           "scales",  "correction",  "projection",  "buckets",  "gathered",
                           "staging", "activations", "other"};
  int64_t factor = 1;
  for (const char* name : classes) {
    EXPECT_EQ(first["predicted"][name], 10 * factor) << name;
    EXPECT_EQ(first["tagged"][name], 20 * factor) << name;
    EXPECT_EQ(first["bytes_per_parameter"][name], static_cast<double>(factor)) << name;
    factor *= 2;
  }
  EXPECT_EQ(first["predicted"]["total"], 10 * (factor - 1));
  EXPECT_EQ(first["bytes_per_parameter"]["total"], static_cast<double>(factor - 1));
  EXPECT_EQ(first["bytes_per_parameter"]["training_state"], 255.0);
  EXPECT_EQ(first["predicted"].size(), kMemoryClasses + 1);
}

TEST(MemoryReport, CountsWhatStaysAndGrowsWithTheParametersAsTrainingState) {
  MemoryTable table;
  table[MemoryClass::kWeights] = 2;
  table[MemoryClass::kProjection] = 3;
  table[MemoryClass::kActivations] = 1000;
  table[MemoryClass::kBuckets] = 1000;
  EXPECT_EQ(training_state_bytes(table), 5);
}

TEST(MemoryReport, IsReplacedAsAWhole) {
  const TemporaryFolder folder;
  const RankMemory ranks[] = {{}};
  write_memory_json(folder / "memory.json", ranks, 1);
  EXPECT_EQ(contents_of(folder / "memory.json"), memory_json(ranks, 1));
}

TEST(MemoryReport, RefusesAModelWithoutParameters) {
  EXPECT_EQ(error_of([] { memory_json({}, 0); }).code(), ExitCode::kInternal);
}

TEST(ProcessMemory, GrowsWithWhatIsTouched) {
  const ProcessMemory before = read_process_memory();
  EXPECT_GT(before.resident, 0);
  EXPECT_GE(before.peak_resident, before.resident);
  constexpr size_t kBytes = size_t{64} << 20;
  const std::vector<char> touched(kBytes, 1);
  const ProcessMemory after = read_process_memory();
  EXPECT_GE(after.resident, before.resident + static_cast<int64_t>(kBytes * 9 / 10));
  EXPECT_GT(read_system_memory(), after.resident);
}

TEST(ProcessMemory, FieldsAreFoundByTheirWholeName) {
  const std::string text = "VmRSSx:\t 1 kB\nVmPeak:\t   20 kB\nVmRSS:\t   300 kB\nBad:\tkB\nEmpty:";
  EXPECT_EQ(parse_kilobyte_field(text, "VmRSS"), 300 * 1024);
  EXPECT_EQ(parse_kilobyte_field(text, "VmPeak"), 20 * 1024);
  EXPECT_EQ(parse_kilobyte_field(text, "VmHWM"), -1);
  EXPECT_EQ(parse_kilobyte_field(text, "Bad"), -1);
  EXPECT_EQ(parse_kilobyte_field(text, "Empty"), -1);
}

}  // namespace
}  // namespace flashshard::metrics
