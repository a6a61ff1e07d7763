// Left folds in fp32, rounded once; and bf16 conversion.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <ostream>
#include <random>
#include <thread>
#include <vector>

#include "kernels/cpu/update.h"
#include "kernels/cpu/update_loops.h"
#include "kernels/numerics/bf16.h"
#include "tests/kernels/numerics/scalar_formulas.h"

namespace flashshard {
namespace {

void serial(int64_t count, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }

struct FoldCase {
  DType input, output;
  size_t inputs;
};
void PrintTo(const FoldCase& c, std::ostream* out) {
  const auto name = [](DType dtype) { return dtype == DType::kBF16 ? "bf16" : "fp32"; };
  *out << c.inputs << " of " << name(c.input) << " to " << name(c.output);
}

/// Inputs with exponents spread over 2^-12 .. 2^12, which show a wrong order.
class Inputs {
 public:
  Inputs(const FoldCase& fold_case, size_t count, uint64_t seed = 1)
      : dtype_(fold_case.input), count_(count) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (size_t k = 0; k < fold_case.inputs; ++k) {
      full_.emplace_back(count);
      half_.emplace_back(count);
      for (size_t i = 0; i < count; ++i) {
        const int exponent = static_cast<int>(random() % 25) - 12;
        const float v = std::ldexp(normal(random), exponent);
        half_[k][i] = float_to_bf16(v);
        full_[k][i] = dtype_ == DType::kBF16 ? bf16_to_float(half_[k][i]) : v;
      }
      pointers_.push_back(dtype_ == DType::kBF16 ? static_cast<void*>(half_[k].data())
                                                 : full_[k].data());
    }
  }
  std::span<const void* const> pointers() const { return pointers_; }
  void* mutable_input(size_t k) {
    return dtype_ == DType::kBF16 ? static_cast<void*>(half_[k].data()) : full_[k].data();
  }
  /// Sums at i in the order given.
  template <class Order>
  float sum(size_t i, const Order& order) const {
    float result = full_[order(0)][i];
    for (size_t k = 1; k < full_.size(); ++k) result += full_[order(k)][i];
    return result;
  }
  float value(size_t k, size_t i) const { return full_[k][i]; }
  size_t count() const { return count_; }
  size_t size() const { return full_.size(); }

 private:
  DType dtype_;
  size_t count_;
  std::vector<std::vector<float>> full_;
  std::vector<std::vector<uint16_t>> half_;
  std::vector<const void*> pointers_;
};

/// Output bits as uint32, whatever the dtype.
std::vector<uint32_t> output_bits(const Tensor& out) {
  std::vector<uint32_t> bits;
  for (int64_t i = 0; i < out.elements(); ++i)
    bits.push_back(out.dtype == DType::kBF16 ? out.as<uint16_t>()[i]
                                             : std::bit_cast<uint32_t>(out.as<float>()[i]));
  return bits;
}
uint32_t rounded(float value, DType dtype) {
  return dtype == DType::kBF16 ? float_to_bf16(value) : std::bit_cast<uint32_t>(value);
}

class Folds : public testing::TestWithParam<FoldCase> {};
INSTANTIATE_TEST_SUITE_P(DtypesAndRanks, Folds,
                         testing::Values(FoldCase{DType::kBF16, DType::kBF16, 1},
                                         FoldCase{DType::kBF16, DType::kBF16, 2},
                                         FoldCase{DType::kBF16, DType::kBF16, 5},
                                         FoldCase{DType::kBF16, DType::kFP32, 3},
                                         FoldCase{DType::kBF16, DType::kFP32, 17},
                                         FoldCase{DType::kFP32, DType::kBF16, 4},
                                         FoldCase{DType::kFP32, DType::kFP32, 4}));

TEST_P(Folds, AreLeftFoldsInEveryLoopAtEveryLength) {
  for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
    for (size_t count = 1; count <= 130; ++count) {
      const Inputs inputs(GetParam(), count);
      std::vector<float> memory(count);
      const Tensor out(memory.data(), GetParam().output, {static_cast<int64_t>(count)});
      loops->fold({.out = out, .inputs = inputs.pointers(), .input_dtype = GetParam().input}, 0,
                  static_cast<int64_t>(count));
      const std::vector<uint32_t> bits = output_bits(out);
      for (size_t i = 0; i < count; ++i)
        ASSERT_EQ(bits[i], rounded(inputs.sum(i, [](size_t k) { return k; }), GetParam().output))
            << loops->name << " length " << count << " at " << i;
    }
  }
}

class FoldOrders : public testing::TestWithParam<FoldCase> {};
INSTANTIATE_TEST_SUITE_P(ThreeOrMoreRanks, FoldOrders,
                         testing::Values(FoldCase{DType::kBF16, DType::kBF16, 5},
                                         FoldCase{DType::kBF16, DType::kFP32, 3},
                                         FoldCase{DType::kFP32, DType::kFP32, 4}));

TEST_P(FoldOrders, AnotherOrderWouldShow) {
  const Inputs inputs(GetParam(), 20000);
  size_t different = 0;
  for (size_t i = 0; i < inputs.count(); ++i) {
    const float forward = inputs.sum(i, [](size_t k) { return k; });
    const float backward = inputs.sum(i, [&](size_t k) { return inputs.size() - 1 - k; });
    different += rounded(forward, GetParam().output) != rounded(backward, GetParam().output);
  }
  EXPECT_GT(different, 0u);
}

class FoldsInPlace : public testing::TestWithParam<FoldCase> {};
INSTANTIATE_TEST_SUITE_P(SameDtype, FoldsInPlace,
                         testing::Values(FoldCase{DType::kBF16, DType::kBF16, 2},
                                         FoldCase{DType::kBF16, DType::kBF16, 5},
                                         FoldCase{DType::kFP32, DType::kFP32, 4}));

TEST_P(FoldsInPlace, TheOutputMayBeAnyInputAndTheWorkMayBeSplit) {
  constexpr size_t kCount = 40000;
  for (size_t target = 0; target < GetParam().inputs; ++target) {
    Inputs inputs(GetParam(), kCount);
    const Inputs original = inputs;
    std::vector<const void*> pointers;
    for (size_t k = 0; k < inputs.size(); ++k) pointers.push_back(inputs.mutable_input(k));
    const Tensor out(inputs.mutable_input(target), GetParam().output,
                     {static_cast<int64_t>(kCount)});
    cpu::fold({.out = out, .inputs = pointers, .input_dtype = GetParam().input},
              [](int64_t count, const auto& body) {
                std::vector<std::jthread> threads;
                for (int64_t i = 0; i < count; ++i) threads.emplace_back(body, i, i + 1);
              });
    const std::vector<uint32_t> bits = output_bits(out);
    for (size_t i = 0; i < kCount; ++i)
      ASSERT_EQ(bits[i], rounded(original.sum(i, [](size_t k) { return k; }), GetParam().output));
  }
}

TEST(Fold, StartsAtTheFirstInputSoNegativeZeroSurvives) {
  std::vector<float> a(40, -0.0f), b(40, -0.0f);
  const void* inputs[] = {a.data(), b.data()};
  const Tensor out(a.data(), DType::kFP32, {40});
  cpu::fold({.out = out, .inputs = inputs, .input_dtype = DType::kFP32}, serial);
  for (float v : a) EXPECT_TRUE(std::signbit(v));
}

TEST(Fold, StartsWithTheOutputWhereItAccumulates) {
  for (const DType input : {DType::kBF16, DType::kFP32}) {
    for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
      for (size_t count : {1u, 31u, 32u, 130u}) {
        const Inputs inputs({input, DType::kFP32, 3}, count);
        const Inputs seeds({DType::kFP32, DType::kFP32, 1}, count, 2);
        std::vector<float> out(count);
        for (size_t i = 0; i < count; ++i) out[i] = seeds.sum(i, [](size_t k) { return k; });
        loops->fold({.out = Tensor(out.data(), DType::kFP32, {static_cast<int64_t>(count)}),
                     .inputs = inputs.pointers(),
                     .input_dtype = input,
                     .accumulate = true},
                    0, static_cast<int64_t>(count));
        for (size_t i = 0; i < count; ++i) {
          float expected = seeds.sum(i, [](size_t k) { return k; });
          for (size_t k = 0; k < inputs.size(); ++k) expected += inputs.value(k, i);
          ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected))
              << loops->name << " length " << count << " at " << i;
        }
      }
    }
  }
}

TEST(Fold, NaNsComeOutInOneForm) {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> a(40, infinity), b(40, -infinity);
  a[3] = std::bit_cast<float>(0xffc12345u);
  b[4] = std::bit_cast<float>(0x7f800001u);
  const void* inputs[] = {a.data(), b.data()};
  for (const cpu::UpdateLoops* loops : cpu::available_update_loops()) {
    std::vector<float> full(40);
    std::vector<uint16_t> half(40);
    loops->fold({.out = Tensor(full.data(), DType::kFP32, {40}),
                 .inputs = inputs,
                 .input_dtype = DType::kFP32},
                0, 40);
    loops->fold({.out = Tensor(half.data(), DType::kBF16, {40}),
                 .inputs = inputs,
                 .input_dtype = DType::kFP32},
                0, 40);
    for (float v : full) ASSERT_EQ(std::bit_cast<uint32_t>(v), 0x7fc00000u);
    for (uint16_t v : half) ASSERT_EQ(v, 0x7fc0);
  }
}

// ---- bf16 ----

TEST(BF16, EveryPatternSurvivesTheWayThroughFP32) {
  for (uint32_t half = 0; half <= 0xffff; ++half) {
    const float value = bf16_to_float(static_cast<uint16_t>(half));
    ASSERT_EQ(float_to_bf16(value), std::isnan(value) ? 0x7fc0u : half) << std::hex << half;
  }
}

TEST(BF16, RoundsToNearestEvenOverAllMagnitudes) {
  for (uint64_t x = 0; x <= 0xffffffffu; x += 16411u) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(x));
    const uint16_t half = float_to_bf16(value);
    ASSERT_EQ(formulas::BF16<formulas::Scalar>::encode(value), half);
    if (std::isnan(value)) {
      ASSERT_EQ(half, 0x7fc0);
      continue;
    }
    const auto below = static_cast<uint16_t>(x >> 16);  // toward zero
    const uint32_t remainder = x & 0xffff;
    const bool up = remainder > 0x8000 || (remainder == 0x8000 && below % 2 == 1);
    ASSERT_EQ(half, static_cast<uint16_t>(below + up)) << std::hex << x;
  }
  for (uint32_t x : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu})
    EXPECT_EQ(float_to_bf16(std::bit_cast<float>(x)), 0x7fc0) << std::hex << x;
  EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::max()), 0x7f80) << "overflow is infinity";
  EXPECT_EQ(float_to_bf16(1.00390625f), 0x3f80) << "a tie goes to even";
  EXPECT_EQ(float_to_bf16(1.01171875f), 0x3f82);
}

}  // namespace
}  // namespace flashshard
