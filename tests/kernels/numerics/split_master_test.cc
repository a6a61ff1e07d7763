// The split master weight: bf16 plus correction bits.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/cpu/update.h"
#include "kernels/numerics/bf16.h"
#include "tests/kernels/numerics/scalar_formulas.h"

namespace flashshard {
namespace {

using formulas::Scalar;
using Split = formulas::SplitMaster<Scalar>;

void serial(int64_t count, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }

/// Every 24-bit pattern of the domain, both signs.
template <class Visit>
void for_each_24_bit_pattern(const Visit& visit) {
  for (uint32_t sign : {0u, 0x80000000u})
    for (uint32_t bits = 0; bits < formulas::kSplitDomainEnd; bits += 0x100) visit(sign | bits);
}

TEST(SplitMaster24, DecodeThenEncodeLeavesEveryBitOfTheDomain) {
  int64_t wrong = 0, negative_zero_corrections = 0;
  for_each_24_bit_pattern([&](uint32_t x) {
    const auto rounded = Split::round24_nearest(std::bit_cast<float>(x));
    const auto weight = static_cast<uint16_t>(Split::weight(rounded));
    const auto correction = static_cast<int8_t>(Split::correction24(rounded));
    const float back =
        Split::decode24(uint32_t{weight} << 16, static_cast<uint32_t>(int32_t{correction}));
    wrong += std::bit_cast<uint32_t>(back) != x;
    wrong += !std::isfinite(bf16_to_float(weight));
    negative_zero_corrections += (weight & 0x7fff) == 0 && correction < 0;
  });
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(negative_zero_corrections, 0);
}

TEST(SplitMaster24, StochasticRoundingOfAStoredValueChangesNothingAtAnyNoise) {
  int64_t wrong = 0;
  for_each_24_bit_pattern([&](uint32_t x) {
    const uint32_t noise = (x >> 8) * 37u & 0xff;
    wrong += (Split::round24_stochastic(std::bit_cast<float>(x), noise) & ~0xffu) != x;
  });
  EXPECT_EQ(wrong, 0);
}

TEST(SplitMaster24, NearestErrsByAtMostA512thOfAnUlpAndStochasticByLessThanA256th) {
  for (uint32_t x = 0x00800000u; x < formulas::kSplitDomainEnd; x += 40503u) {
    const float value = std::bit_cast<float>(x);
    const double ulp = std::ldexp(1.0, std::ilogb(value) - 7);
    const auto error = [&](uint32_t rounded) {
      return std::fabs(double{std::bit_cast<float>(rounded & ~0xffu)} - double{value}) / ulp;
    };
    ASSERT_LE(error(Split::round24_nearest(value)), 1.0 / 512) << std::hex << x;
    ASSERT_LT(error(Split::round24_stochastic(value, x * 97u & 0xff)), 1.0 / 256) << std::hex << x;
  }
}

TEST(SplitMaster24, TheWeightIsTheBF16NearestToTheMaster) {
  for (uint32_t x = 0; x < 0x7f000000u; x += 0x100 * 331u) {
    const float master = std::bit_cast<float>(x);
    const float weight = bf16_to_float(static_cast<uint16_t>(Split::weight(x)));
    const float nearest = bf16_to_float(float_to_bf16(master));
    ASSERT_EQ(std::fabs(double{weight} - master), std::fabs(double{nearest} - master));
  }
}

struct Master {
  WeightFormat format;
  std::vector<uint16_t> half;
  std::vector<float> full;
  std::vector<int16_t> correction;  // large enough for either kind
  std::vector<float> decoded;

  Master(WeightFormat f, size_t count)
      : format(f), half(count, 0x1234), full(count, 7.0f), correction(count), decoded(count) {}
  void* weight() {
    return format == WeightFormat::kFP32 ? static_cast<void*>(full.data()) : half.data();
  }
  int64_t encode(const std::vector<float>& values) {
    int64_t rejected = 0;
    EncodeMaster call{.format = format,
                      .values = values.data(),
                      .weight = weight(),
                      .correction = correction_bytes(format) ? correction.data() : nullptr,
                      .count = static_cast<int64_t>(values.size()),
                      .rejected_groups = &rejected};
    cpu::encode_master(call, serial);
    cpu::decode_master({.format = format,
                        .values = decoded.data(),
                        .weight = weight(),
                        .correction = call.correction,
                        .count = call.count},
                       serial);
    return rejected;
  }
};

class MasterFormats : public testing::TestWithParam<WeightFormat> {};
INSTANTIATE_TEST_SUITE_P(All, MasterFormats,
                         testing::Values(WeightFormat::kSplit24, WeightFormat::kSplit32,
                                         WeightFormat::kBF16, WeightFormat::kFP32));

std::vector<float> spread_values(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    const auto x = static_cast<uint32_t>(i * 2654435761u);
    values[i] = std::bit_cast<float>((x & 0x80000000u) | (x & 0x7fffffffu) % 0x7f7f0001u);
  }
  return values;
}

TEST_P(MasterFormats, EncodingKeepsTheFormatsBitsAtEveryLength) {
  const double relative = GetParam() == WeightFormat::kSplit24 ? 0x1p-16
                          : GetParam() == WeightFormat::kBF16  ? 0x1p-8
                                                               : 0.0;
  for (size_t count = 1; count <= 130; ++count) {
    const std::vector<float> values = spread_values(count);
    Master master(GetParam(), count);
    ASSERT_EQ(master.encode(values), 0);
    for (size_t i = 0; i < count; ++i) {
      const double limit = std::max(relative * std::fabs(double{values[i]}), relative * 0x1p-126);
      ASSERT_LE(std::fabs(double{master.decoded[i]} - double{values[i]}), limit) << i;
    }
    const std::vector<float> first = master.decoded;
    ASSERT_EQ(master.encode(first), 0);
    ASSERT_EQ(master.decoded, first) << "encoding a decoded master must change nothing";
  }
}

TEST_P(MasterFormats, AGroupWithAValueOutsideTheDomainIsNotWrittenAndCounted) {
  const bool bf16 = GetParam() == WeightFormat::kBF16;
  const uint32_t end = bf16 ? formulas::kBF16DomainEnd : formulas::kSplitDomainEnd;
  for (uint32_t outside : {end, end | 0x80000000u, 0x7f800000u, 0x7fc00000u, 0xffffffffu}) {
    std::vector<float> values(100, 1.0f);
    values[40] = std::bit_cast<float>(outside);
    values[41] = std::bit_cast<float>(end - 1);
    Master master(GetParam(), values.size());
    const float untouched = [&] {
      Master fresh(GetParam(), 1);
      cpu::decode_master({.format = GetParam(),
                          .values = fresh.decoded.data(),
                          .weight = fresh.weight(),
                          .correction = fresh.correction.data(),
                          .count = 1},
                         serial);
      return fresh.decoded[0];
    }();
    EXPECT_EQ(master.encode(values), 1);
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(master.decoded[i], i >= 32 && i < 64 ? untouched : 1.0f) << i;
    values[40] = 1.0f;
    EXPECT_EQ(master.encode(values), 0) << "the last value inside the domain is accepted";
  }
}

}  // namespace
}  // namespace flashshard
