// The rotary table: accuracy at late positions, and llama3's scaling against transformers.
#include "runtime/model/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace flashshard {
namespace {

TEST(RopeTable, IsAccurateAtLatePositions) {
  const int head_dim = 8;
  const int64_t positions = 100001;
  const std::vector<float> table = rope_table(positions, head_dim, 500000.0);
  ASSERT_EQ(table.size(), static_cast<size_t>(positions * head_dim));
  for (const int64_t position : {int64_t{0}, int64_t{1}, int64_t{77777}, positions - 1}) {
    for (int i = 0; i < head_dim / 2; ++i) {
      const long double angle =
          static_cast<long double>(position) * std::pow(500000.0L, -2.0L * i / head_dim);
      const float* row = table.data() + position * head_dim;
      EXPECT_NEAR(row[i], static_cast<double>(std::cos(angle)), 6e-8);
      EXPECT_NEAR(row[head_dim / 2 + i], static_cast<double>(std::sin(angle)), 6e-8);
    }
  }
}

TEST(RopeTable, TurnsByTheScaledFrequencies) {
  const RopeScaling scaling{.kind = RopeScaling::Kind::kLlama3, .original_positions = 256};
  const std::vector<double> frequencies = rope_frequencies(8, 500000.0, scaling);
  const std::vector<float> table = rope_table(5, 8, 500000.0, scaling);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_FLOAT_EQ(table[3 * 8 + i], static_cast<float>(std::cos(3 * frequencies[i])));
    EXPECT_FLOAT_EQ(table[3 * 8 + 4 + i], static_cast<float>(std::sin(3 * frequencies[i])));
  }
}

TEST(RopeFrequencies, AreTransformersOwnForEveryScaledModel) {
  std::ifstream file(std::string(FLASHSHARD_TEST_DATA) +
                     "/runtime/model/golden/rope_frequencies.json");
  const auto golden = nlohmann::json::parse(file);
  ASSERT_EQ(golden["cases"].size(), 4u);
  for (const auto& expected : golden["cases"]) {
    const RopeScaling scaling{.kind = RopeScaling::Kind::kLlama3,
                              .factor = expected["factor"],
                              .low_frequency_factor = expected["low_frequency_factor"],
                              .high_frequency_factor = expected["high_frequency_factor"],
                              .original_positions = expected["original_positions"]};
    const std::vector<double> frequencies =
        rope_frequencies(expected["head_dim"], expected["theta"], scaling);
    ASSERT_EQ(frequencies.size(), expected["frequencies"].size());
    for (size_t i = 0; i < frequencies.size(); ++i) {
      // transformers computes them in fp32.
      const double reference = expected["frequencies"][i];
      EXPECT_NEAR(frequencies[i], reference, 1e-6 * reference) << expected["name"] << " " << i;
    }
  }
}

TEST(RopeFrequencies, KeepFastOnesDivideSlowOnesAndRiseInBetween) {
  const RopeScaling scaling{.kind = RopeScaling::Kind::kLlama3};
  const std::vector<double> plain = rope_frequencies(128, 500000.0, {});
  const std::vector<double> scaled = rope_frequencies(128, 500000.0, scaling);
  EXPECT_EQ(scaled.front(), plain.front());
  EXPECT_DOUBLE_EQ(scaled.back(), plain.back() / 8);
  for (size_t i = 1; i < plain.size(); ++i) {
    EXPECT_LE(scaled[i] / plain[i], scaled[i - 1] / plain[i - 1]);
  }
}

}  // namespace
}  // namespace flashshard
