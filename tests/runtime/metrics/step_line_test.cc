// The formats people and parsers rely on.
#include "runtime/metrics/step_line.h"

#include <gtest/gtest.h>

#include <limits>

#include "runtime/metrics/number_format.h"

namespace flashshard::metrics {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

TEST(StepLine, HasTorchtitansFieldsAndFormats) {
  EXPECT_EQ(
      format_step_line({10, 3.653341, 1.23449, {kGiB * 6 / 5, 8 * kGiB}, 5762.4, 300.123, 0.33}),
      "step: 10  loss:  3.65334  grad_norm:  1.2345  memory:  1.20GiB(15.0%)  tps: 5,762  "
      "tflops: 300.12  mfu: 33.00%");
}

TEST(StepLine, AlignsTheFirstSteps) {
  EXPECT_EQ(format_step_line({1, 12.0, 0.5, {70 * kGiB, 80 * kGiB}, 123456.5, 1234.5, 1.0}),
            "step:  1  loss: 12.00000  grad_norm:  0.5000  memory: 70.00GiB(87.5%)  tps: 123,456  "
            "tflops: 1,234.50  mfu: 100.00%");
}

TEST(StepLine, SaysWhatIsNotKnownOrNotANumber) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(
      format_step_line(
          {3, kNaN, std::numeric_limits<double>::infinity(), {0, 0}, kNaN, 0.0, std::nullopt}),
      "step:  3  loss:      nan  grad_norm:     inf  memory:  0.00GiB(0.0%)  tps: nan  "
      "tflops: 0.00  mfu: N/A");
}

TEST(ValidationLine, HasTorchtitansFieldsAndFormats) {
  EXPECT_EQ(format_validation_line({100, 1.48768, {kGiB * 6 / 5, 8 * kGiB}, 98765.4}),
            "validate step: 100  loss:  1.4877  memory:  1.20GiB(15.0%)  tps: 98,765");
}

TEST(NumberFormat, GroupsThousands) {
  const std::pair<int64_t, const char*> integers[] = {
      {0, "0"},
      {999, "999"},
      {1000, "1,000"},
      {-999, "-999"},
      {-1000, "-1,000"},
      {1234567, "1,234,567"},
      {std::numeric_limits<int64_t>::min(), "-9,223,372,036,854,775,808"}};
  for (const auto& [value, text] : integers) EXPECT_EQ(with_thousands(value), text);
  EXPECT_EQ(with_thousands(1234567.891, 2), "1,234,567.89");
  EXPECT_EQ(with_thousands(-1234.5, 1), "-1,234.5");
  EXPECT_EQ(with_thousands(-std::numeric_limits<double>::infinity(), 2), "-inf");
}

TEST(NumberFormat, PicksTheUnitOfBytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(kGiB * 6 / 5), "1.20 GiB");
  EXPECT_EQ(format_bytes(-2048), "-2.00 KiB");
  EXPECT_EQ(format_bytes(std::numeric_limits<int64_t>::max()), "8.00 EiB");
}

TEST(NumberFormat, WritesDurationsLikeAClock) {
  EXPECT_EQ(format_duration(0), "0:00");
  EXPECT_EQ(format_duration(59.6), "1:00");
  EXPECT_EQ(format_duration(205), "3:25");
  EXPECT_EQ(format_duration(3723), "1:02:03");
  EXPECT_EQ(format_duration(360000), "100:00:00");
  EXPECT_EQ(format_duration(-1), "-");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::quiet_NaN()), "-");
}

}  // namespace
}  // namespace flashshard::metrics
