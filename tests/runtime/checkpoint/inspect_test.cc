// `inspect` counts what a checkpoint holds.
#include "runtime/checkpoint/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "runtime/checkpoint/verify.h"
#include "tests/runtime/checkpoint/sample_state.h"

namespace flashshard::checkpoint {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using ::testing::Each;
using ::testing::HasSubstr;

class Inspect : public ::testing::TestWithParam<int> {};

TEST_P(Inspect, BytesByClassAreThoseOfTheFormatsWhateverTheWorldSize) {
  TemporaryFolder run;
  ASSERT_THAT(save_on_ranks(run / "checkpoints", 20, GetParam()), Each(""));
  const Inspection inspection = inspect(run.path());
  const int64_t matrices = 40 * 16 + 24 * 64 + 13 * 20;
  const int64_t vectors = 16 + 70;
  EXPECT_EQ(inspection.parameters, matrices + vectors);
  EXPECT_EQ(inspection.world_size, GetParam());
  EXPECT_EQ(inspection.tensors, 5);
  const auto bytes = [&](StateClass c) {
    return inspection.bytes_by_class[static_cast<size_t>(c)];
  };
  EXPECT_EQ(bytes(StateClass::kWeights), 2 * (matrices + vectors));
  EXPECT_EQ(bytes(StateClass::kCorrection), matrices + 2 * vectors);
  EXPECT_EQ(bytes(StateClass::kMomentum), matrices + 4 * vectors);
  EXPECT_EQ(bytes(StateClass::kVariance), matrices + 4 * vectors);
  // 13 x 20 elements are 8 groups and a short one.
  EXPECT_EQ(bytes(StateClass::kScales), 2 * 2 * (20 + 48 + 9));
  EXPECT_EQ(inspection.hash, hash(run.path()));

  int64_t on_disk = 0;
  for (const auto& file : std::filesystem::directory_iterator(inspection.path)) {
    on_disk += static_cast<int64_t>(file.file_size());
  }
  EXPECT_EQ(inspection.file_bytes, on_disk);
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, Inspect, ::testing::Values(1, 3));

TEST(InspectReport, SaysTheSameToPeopleAndToScripts) {
  TemporaryFolder run;
  ASSERT_THAT(save_on_ranks(run / "checkpoints", 20, 2), Each(""));
  const Inspection inspection = inspect(run.path());
  const auto json = nlohmann::json::parse(to_json(inspection));
  EXPECT_EQ(json["step"], 20);
  EXPECT_EQ(json["world_size"], 2);
  EXPECT_EQ(json["parameters"], inspection.parameters);
  EXPECT_EQ(json["bytes"]["scales"], 308);
  EXPECT_EQ(json["rng_keys"]["seed"], 18446744073709551615u);
  EXPECT_EQ(json["hash"]["total"], inspection.hash.total().hex());
  EXPECT_DOUBLE_EQ(
      json["bytes_per_parameter"].get<double>() * json["compression_against_fp32"].get<double>(),
      12.0);
  const std::string text = to_text(inspection);
  EXPECT_THAT(text, HasSubstr("step           20 (19 updates applied)"));
  EXPECT_THAT(text, HasSubstr("2522 parameters in 5 tensors"));
  EXPECT_THAT(text, HasSubstr("2 ranks"));
  EXPECT_THAT(text, HasSubstr(inspection.hash.total().hex()));
}

}  // namespace
}  // namespace flashshard::checkpoint
