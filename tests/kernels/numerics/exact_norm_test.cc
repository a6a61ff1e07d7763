// The exact sum of squares: order-free, the same at every partition, correctly rounded, and aware
// of non-finite values.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "kernels/cpu/update.h"
#include "kernels/cpu/update_loops.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/exact_sum.h"

namespace flashshard {
namespace {

using Limbs = std::array<int64_t, numerics::kExactSumLimbs>;
// 113 bits: exact for sums whose terms span less.
#ifdef __SIZEOF_FLOAT128__
__extension__ typedef __float128 Quad;
#else
using Quad = long double;
static_assert(std::numeric_limits<Quad>::digits == 113);
#endif

void serial(int64_t count, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }

Tensor view(std::vector<float>& v) {
  return Tensor(v.data(), DType::kFP32, {static_cast<int64_t>(v.size())});
}
Tensor view(std::vector<uint16_t>& v) {
  return Tensor(v.data(), DType::kBF16, {static_cast<int64_t>(v.size())});
}

struct Norm {
  Limbs limbs = {};
  int64_t nonfinite = 0;
  double value() const { return numerics::exact_sum_value(limbs); }
};
Norm norm_of(std::span<const Tensor> tensors, const ParallelFor& parallel_for = serial) {
  Norm norm;
  cpu::exact_norm({.tensors = tensors, .limbs = norm.limbs, .nonfinite_groups = &norm.nonfinite},
                  parallel_for);
  return norm;
}

/// The group's sum as documented: squares, then a balanced tree over adjacent pairs.
float group_sum(const float* g, size_t count) {
  if (count == 1) return *g * *g;
  return group_sum(g, count / 2) + group_sum(g + count / 2, count / 2);
}

std::vector<float> random_values(size_t count, uint64_t seed, float exponent_spread) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> unit(-0.5f, 0.5f);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random) * std::exp2(-8.0f + exponent_spread * unit(random));
  return values;
}

TEST(ExactNorm, IsTheExactSumOfTheGroupSums) {
  for (size_t count : {1u, 31u, 32u, 33u, 64u, 257u, 1000u, 20011u}) {
    std::vector<float> values = random_values(count, count, 20);
    Quad sum = 0;
    for (size_t first = 0; first < count; first += kGroup) {
      float group[kGroup] = {};
      std::copy_n(values.data() + first, std::min<size_t>(kGroup, count - first), group);
      sum += Quad{group_sum(group, kGroup)};
    }
    const Tensor tensor = view(values);
    EXPECT_EQ(norm_of({&tensor, 1}).value(), static_cast<double>(sum)) << count;
  }
}

TEST(ExactNorm, SquaresOfBF16AreExact) {
  std::vector<float> values = random_values(32, 4, 0);
  std::vector<uint16_t> halves;
  for (float v : values) halves.push_back(float_to_bf16(v));
  for (size_t i = 1; i < 32; ++i) halves[i] = 0;
  const double value = bf16_to_float(halves[0]);
  const Tensor tensor = view(halves);
  EXPECT_EQ(norm_of({&tensor, 1}).value(), value * value);
}

template <class T>
class ExactNormOf : public testing::Test {
 public:
  static std::vector<T> values(size_t count, uint64_t seed, float spread) {
    std::vector<T> result;
    for (float v : random_values(count, seed, spread)) {
      if constexpr (std::is_same_v<T, float>) {
        result.push_back(v);
      } else {
        result.push_back(float_to_bf16(v));
      }
    }
    return result;
  }
};
using GradientTypes = testing::Types<float, uint16_t>;
TYPED_TEST_SUITE(ExactNormOf, GradientTypes);

TYPED_TEST(ExactNormOf, PermutingGroupsAndPartitionsChangesNoBit) {
  constexpr size_t kGroups = 2000;
  std::vector<TypeParam> values = this->values(kGroups * kGroup, 9, 100);
  const Tensor whole = view(values);
  const Norm expected = norm_of({&whole, 1});
  std::mt19937_64 random(1);
  std::vector<size_t> order(kGroups);
  for (size_t g = 0; g < kGroups; ++g) order[g] = g;
  for (int trial = 0; trial < 20; ++trial) {
    std::shuffle(order.begin(), order.end(), random);
    std::vector<TypeParam> shuffled(values.size());
    for (size_t g = 0; g < kGroups; ++g)
      std::copy_n(values.data() + order[g] * kGroup, kGroup, shuffled.data() + g * kGroup);
    std::vector<Tensor> parts;
    const Tensor all(shuffled.data(), whole.dtype, {kGroups, kGroup});
    for (int64_t first = 0; first < all.rows();) {
      const int64_t rows =
          std::min<int64_t>(1 + static_cast<int64_t>(random() % 500), all.rows() - first);
      parts.push_back(all.row_range(first, rows));
      first += rows;
    }
    const Norm norm = norm_of(parts, [](int64_t count, const auto& body) {
      std::vector<std::jthread> threads;
      for (int64_t i = 0; i < count; i += 3) threads.emplace_back(body, i, std::min(i + 3, count));
    });
    ASSERT_EQ(norm.limbs, expected.limbs);
    // As ranks do it: each its own limbs, then integer sums.
    Limbs reduced = {};
    for (const Tensor& part : parts) numerics::merge_exact(reduced, norm_of({&part, 1}).limbs);
    ASSERT_EQ(numerics::exact_sum_value(reduced), expected.value());
    numerics::carry_exact(reduced);
    ASSERT_EQ(reduced, expected.limbs);
  }
}

TYPED_TEST(ExactNormOf, ThePartitionWouldShowInAnOrdinaryFP32Sum) {
  std::vector<TypeParam> values = this->values(64 * kGroup, 9, 20);
  float forward = 0, backward = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const auto square = [](TypeParam v) {
      const float x = std::is_same_v<TypeParam, float> ? static_cast<float>(v)
                                                       : bf16_to_float(static_cast<uint16_t>(v));
      return x * x;
    };
    forward += square(values[i]);
    backward += square(values[values.size() - 1 - i]);
  }
  EXPECT_NE(forward, backward) << "the values must be able to show an order";
}

TYPED_TEST(ExactNormOf, VectorLoopsGiveTheScalarBitsAtEveryLengthAndAlignment) {
  const auto loops = cpu::available_update_loops();
  for (size_t count = 1; count <= 1200; count += count < 130 ? 1 : 53) {
    const size_t offset = count % 5;
    std::vector<TypeParam> values = this->values(count + offset, count, 100);
    const auto n = static_cast<int64_t>(count);
    Tensor tensor = view(values);
    tensor.data = values.data() + offset;
    tensor.shape[0] = n;
    Limbs expected = {};
    loops[0]->exact_norm(tensor, 0, n, expected);
    for (const cpu::UpdateLoops* each : loops) {
      Limbs limbs = {};
      each->exact_norm(tensor, 0, n, limbs);
      numerics::carry_exact(limbs);
      Limbs carried = expected;
      numerics::carry_exact(carried);
      ASSERT_EQ(limbs, carried) << each->name << " at length " << count;
    }
  }
}

TYPED_TEST(ExactNormOf, AMagnitudeOf2To60OrMoreCountsItsGroupAndLeavesItOut) {
  const auto from_bits = [](uint32_t bits) {
    if constexpr (std::is_same_v<TypeParam, float>) {
      return std::bit_cast<float>(bits);
    } else {
      return static_cast<uint16_t>(bits >> 16);
    }
  };
  std::vector<TypeParam> clean(1000, from_bits(0x3f800000u));
  const Tensor clean_view = view(clean);
  ASSERT_EQ(norm_of({&clean_view, 1}).value(), 1000.0);
  for (uint32_t sign : {0u, 0x80000000u}) {
    for (uint32_t bits : {0x5d800000u, 0x5d810000u, 0x7f7f0000u, 0x7f800000u, 0x7fc00000u}) {
      std::vector<TypeParam> values = clean;
      values[70] = values[75] = values[999] = from_bits(bits | sign);
      const Tensor tensor = view(values);
      const Norm norm = norm_of({&tensor, 1});
      EXPECT_EQ(norm.nonfinite, 2) << std::hex << bits;
      EXPECT_EQ(norm.value(), 1000.0 - 32 - 8);
    }
  }
  clean[70] = from_bits(0x5d7f0000u);
  const Norm norm = norm_of({&clean_view, 1});
  EXPECT_EQ(norm.nonfinite, 0) << "just below 2^60 is an ordinary value";
  EXPECT_GT(norm.value(), 0x1p119);
}

TEST(ExactSum, HoldsEveryFloatExactly) {
  for (uint32_t bits = 0; bits < 0x7f800000u; bits += 9973u) {
    Limbs limbs = {};
    const float value = std::bit_cast<float>(bits);
    numerics::add_exact(limbs, value);
    ASSERT_EQ(numerics::exact_sum_value(limbs), double{value}) << std::hex << bits;
  }
}

TEST(ExactSum, RoundsOnceToNearestEven) {
  const auto sum_of = [](std::initializer_list<float> terms) {
    Limbs limbs = {};
    for (float term : terms) numerics::add_exact(limbs, term);
    return numerics::exact_sum_value(limbs);
  };
  EXPECT_EQ(sum_of({}), 0.0);
  EXPECT_EQ(sum_of({0x1p-149f}), 0x1p-149);
  EXPECT_EQ(sum_of({1.0f, 0x1p-53f}), 1.0) << "a tie goes to even";
  EXPECT_EQ(sum_of({1.0f, 0x1p-53f, 0x1p-149f}), 1.0 + 0x1p-52) << "anything below breaks the tie";
  EXPECT_EQ(sum_of({1.0f, 0x1p-52f, 0x1p-53f}), 1.0 + 0x1p-51);
  EXPECT_EQ(sum_of({0x1p127f, 0x1p-149f}), 0x1p127);
}

TEST(ExactSum, AgreesWithAWideReferenceWhenUncarried) {
  std::mt19937_64 random(3);
  Limbs limbs = {};
  Quad reference = 0;
  for (int i = 0; i < 100000; ++i) {
    const auto exponent = static_cast<int>(random() % 60) - 40;
    const float value = std::ldexp(static_cast<float>(random() >> 40), exponent);
    numerics::add_exact(limbs, value);
    reference += Quad{value};
  }
  EXPECT_EQ(numerics::exact_sum_value(limbs), static_cast<double>(reference));
}

}  // namespace
}  // namespace flashshard
