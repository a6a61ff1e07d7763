// The CUDA kernels give the CPU's bits: every rule, format, rounding, length and alignment. Linked
// once with the kernels on a GPU (skipped without one), and once with their emulation on the CPU.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/update.h"
#include "kernels/error.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/exact_sum.h"
#include "tests/kernels/cuda/device_under_test.h"
#include "tests/kernels/numerics/golden_updates.h"
#include "tests/kernels/numerics/update_state.h"

namespace flashshard {
namespace {

void serial(int64_t count, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }

template <class Base>
class OnDevice : public Base {
 protected:
  void SetUp() override {
    const std::string reason = device_under_test::unavailable();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

// ---- updates ----

UpdateFactors factors_at(const RuleCase& rule, uint64_t t, Rounding rounding) {
  return make_update_factors(rule.rule, rule.hyper, 1e-2, 0.75, rounding, t);
}

/// What two steps did.
struct Outcome {
  int64_t rejected = 0;
  bool moved = false;
};

/// Two steps of one tensor on the device and on the CPU: the same bits and counts.
Outcome expect_parity(const RuleCase& rule, const UpdateFormat& format, const UpdateState& start) {
  UpdateState on_cpu = start, on_device = start;
  for (uint64_t t = 1; t <= 2; ++t) {
    const UpdateFactors factors = factors_at(rule, t, format.rounding);
    const UpdateTensor cpu_tensor = on_cpu.tensor(), device_tensor = on_device.tensor();
    cpu::update({&cpu_tensor, 1}, factors, serial);
    device_under_test::update({&device_tensor, 1}, factors);
  }
  EXPECT_TRUE(on_device == on_cpu);
  EXPECT_EQ(on_device.rejected_groups, on_cpu.rejected_groups);
  return {on_cpu.rejected_groups, !(on_device == start)};
}

class UpdateParity : public OnDevice<testing::TestWithParam<UpdateCase>> {
 protected:
  const RuleCase& rule() const { return GetParam().rule; }
};
INSTANTIATE_TEST_SUITE_P(All, UpdateParity, testing::ValuesIn(all_update_cases()),
                         [](const auto& instance) { return name_of(instance.param); });

TEST_P(UpdateParity, EveryFormatLengthAndAlignment) {
  for (const UpdateFormat& format : formats_with(GetParam().state)) {
    bool moved = false;
    for (int64_t count : {1, 31, 32, 33, 100, 256, 257, 800}) {
      for (size_t offset : {size_t{0}, size_t{1}, size_t{8}}) {
        UpdateState start(rule(), format, count, 96, offset);
        start.fill(static_cast<uint64_t>(count) + offset, 30);
        moved = expect_parity(rule(), format, start).moved || moved;
        ASSERT_FALSE(HasFailure())
            << name_of(format) << ", " << count << " elements, offset " << offset;
      }
    }
    EXPECT_TRUE(moved) << name_of(format);
  }
}

TEST_P(UpdateParity, WildStatesAndBadGradients) {
  int64_t rejected = 0;
  for (const UpdateFormat& format : formats_with(GetParam().state)) {
    for (size_t offset : {size_t{0}, size_t{3}}) {
      UpdateState start(rule(), format, 1500, 0, offset);
      start.fill(99, 110);
      start.set_gradient(70, std::numeric_limits<float>::quiet_NaN());
      start.set_gradient(300, -std::numeric_limits<float>::infinity());
      start.set_gradient(1499, 3e38f);
      rejected += expect_parity(rule(), format, start).rejected;
      ASSERT_FALSE(HasFailure()) << name_of(format) << ", offset " << offset;
    }
  }
  EXPECT_GT(rejected, 0);
}

TEST_P(UpdateParity, ZeroStatesAndTinyGradients) {
  for (const UpdateFormat& format : formats_with(GetParam().state)) {
    UpdateState start(rule(), format, 512);
    for (size_t i = 0; i < start.size(); ++i) {
      start.set_weight(i, i % 3 == 0 ? 0.0f : static_cast<float>(i) * 1e-3f);
      // Down to gradients whose squares are subnormal or vanish.
      start.set_gradient(i, i / kGroup % 4 == 0 ? 0.0f
                                                : std::ldexp(i % 2 == 0 ? 1.0f : -0.75f,
                                                             -static_cast<int>(i % 149)));
    }
    expect_parity(rule(), format, start);
    ASSERT_FALSE(HasFailure()) << name_of(format);
  }
}

TEST_P(UpdateParity, NoiseFollowsTheElementAcrossChangesOfItsKey) {
  for (WeightFormat weight : {WeightFormat::kSplit24, WeightFormat::kBF16}) {
    const UpdateFormat format{.weight = weight, .state = GetParam().state};
    for (int64_t end : {int64_t{1} << 29, int64_t{1} << 33, int64_t{1} << 34, int64_t{1} << 36}) {
      UpdateState start(rule(), format, 1000, end - 416);
      start.fill(7, 20);
      expect_parity(rule(), format, start);
      ASSERT_FALSE(HasFailure()) << name_of(format) << ", up to " << end;
    }
  }
}

class Update : public OnDevice<testing::Test> {};

TEST_F(Update, ManyTensorsOfAllFormatsAndSizesInOneCall) {
  const RuleCase& rule = rule_cases()[0];
  std::vector<UpdateState> states;
  for (auto state : {StateFormat::kCompanded, StateFormat::kFP32, StateFormat::kFlashOptim}) {
    for (const UpdateFormat& format : formats_with(state)) {
      if (format.rounding == Rounding::kNearest) continue;  // of the call, not of a tensor
      for (int64_t count : {5, 0, 64, 320, 1000, 2048, 96, 32, 33}) {
        states.emplace_back(rule, format, count, 0, static_cast<size_t>(count % 3));
        states.back().fill(states.size(), 40);
      }
    }
  }
  for (int i = 0; i < 300; ++i) {  // more than a table holds
    states.emplace_back(rule, UpdateFormat{}, 32 + 32 * (i % 5));
    states.back().fill(static_cast<uint64_t>(i), 20);
  }
  std::vector<UpdateState> expected = states;
  int64_t rejected = 0, expected_rejected = 0;  // shared by the tensors of a call
  std::vector<UpdateTensor> tensors, expected_tensors;
  for (UpdateState& state : states) tensors.push_back(state.tensor());
  for (UpdateState& state : expected) expected_tensors.push_back(state.tensor());
  for (UpdateTensor& tensor : tensors) tensor.rejected_groups = &rejected;
  for (UpdateTensor& tensor : expected_tensors) tensor.rejected_groups = &expected_rejected;
  const UpdateFactors factors = factors_at(rule, 3, Rounding::kStochastic);
  device_under_test::update(tensors, factors);
  cpu::update(expected_tensors, factors, serial);
  for (size_t i = 0; i < states.size(); ++i) ASSERT_TRUE(states[i] == expected[i]) << i;
  EXPECT_EQ(rejected, expected_rejected);
}

TEST_F(Update, NoTensorsAreNoWork) {
  device_under_test::update({}, factors_at(rule_cases()[0], 1, Rounding::kNearest));
}

TEST_F(Update, AgreesWithEveryGoldenFile) {
  const golden::StepCall step = [](const UpdateTensor& tensor, const UpdateFactors& factors) {
    device_under_test::update({&tensor, 1}, factors);
  };
  golden::expect_adamw_follows_pytorch(step);
  golden::expect_rules_follow_pytorch(step);
  golden::expect_flashoptim_updates(step);
  golden::expect_flashoptim_momenta(step);
}

// ---- masters ----

struct Master {
  std::vector<uint32_t> weight;  // room for every format
  std::vector<uint16_t> correction;
  int64_t rejected = 0;

  explicit Master(size_t count) : weight(count), correction(count) {}
  EncodeMaster call(WeightFormat format, const std::vector<float>& values, size_t offset) {
    return {format,
            values.data() + offset,
            weight.data(),
            correction.data(),
            static_cast<int64_t>(values.size() - offset),
            &rejected};
  }
};

class MasterParity : public OnDevice<testing::TestWithParam<int>> {};
INSTANTIATE_TEST_SUITE_P(WeightFormats, MasterParity, testing::Range(0, 9));

TEST_P(MasterParity, EncodingDecodingAndRejectedGroups) {
  const auto format = static_cast<WeightFormat>(GetParam());
  std::mt19937_64 random(5);
  for (size_t count : {1u, 32u, 40u, 256u, 1100u}) {
    std::vector<float> values(count);
    for (float& v : values)
      v = std::ldexp(static_cast<float>(random() % 4096) - 2048,
                     static_cast<int>(random() % 24) - 26);
    if (count == 1100) {
      values[40] = std::numeric_limits<float>::quiet_NaN();
      values[1098] = 0x1.fffffep127f;
    }
    for (size_t offset : {size_t{0}, count > 1 ? size_t{1} : size_t{0}}) {
      Master on_cpu(count), on_device(count);
      cpu::encode_master(on_cpu.call(format, values, offset), serial);
      device_under_test::encode_master(on_device.call(format, values, offset));
      ASSERT_EQ(on_device.weight, on_cpu.weight);
      ASSERT_EQ(on_device.correction, on_cpu.correction);
      EXPECT_EQ(on_device.rejected, on_cpu.rejected);
      EXPECT_EQ(on_cpu.rejected, count == 1100 ? 2 : 0);
      std::vector<float> cpu_values(count), device_values(count);
      const auto n = static_cast<int64_t>(count - offset);
      cpu::decode_master(
          {format, cpu_values.data() + offset, on_cpu.weight.data(), on_cpu.correction.data(), n},
          serial);
      device_under_test::decode_master({format, device_values.data() + offset, on_cpu.weight.data(),
                                        on_cpu.correction.data(), n});
      ASSERT_EQ(device_values, cpu_values);
    }
  }
}

class Masters : public OnDevice<testing::Test> {};

TEST_F(Masters, OfFlashOptimAreThePackagesBitForBit) {
  Golden golden("flashoptim_codecs.bin");
  for (size_t count : {size_t{1293}, size_t{1281}}) {  // momenta and variances
    golden.next<float>(count), golden.next<uint8_t>(count);
    golden.next<uint16_t>((count + kGroup - 1) / kGroup), golden.next<float>(count);
  }
  for (size_t count : {size_t{1}, size_t{31}, size_t{45}}) {
    golden.next<uint8_t>(count), golden.next<uint16_t>((count + kGroup - 1) / kGroup);
  }
  for (WeightFormat format : {WeightFormat::kCorrected24, WeightFormat::kCorrected32,
                              WeightFormat::kFP16Corrected24, WeightFormat::kFP16Corrected32}) {
    constexpr size_t kCount = 1500;
    const auto bytes = static_cast<size_t>(correction_bytes(format)) * kCount;
    const auto values = golden.next<float>(kCount);
    const auto weight = golden.next<uint16_t>(kCount);
    const auto correction = golden.next<uint8_t>(bytes);
    const auto decoded = golden.next<float>(kCount);
    std::vector<uint16_t> our_weight(kCount);
    std::vector<uint8_t> our_correction(bytes);
    std::vector<float> our_values(kCount);
    device_under_test::encode_master(
        {format, values.data(), our_weight.data(), our_correction.data(), kCount});
    EXPECT_EQ(our_weight, weight);
    EXPECT_EQ(our_correction, correction);
    device_under_test::decode_master(
        {format, our_values.data(), weight.data(), correction.data(), kCount});
    EXPECT_EQ(std::memcmp(our_values.data(), decoded.data(), kCount * sizeof(float)), 0);
  }
}

// ---- folds and norms ----

/// bf16 or fp32 values of many magnitudes, as bytes.
std::vector<uint32_t> random_tensor(DType dtype, size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<uint32_t> words(count);
  for (size_t i = 0; i < count; ++i) {
    const float v = std::ldexp(normal(random), static_cast<int>(random() % 60) - 40);
    if (dtype == DType::kFP32) {
      words[i] = std::bit_cast<uint32_t>(v);
    } else {
      reinterpret_cast<uint16_t*>(words.data())[i] = float_to_bf16(v);
    }
  }
  return words;
}

struct FoldCase {
  DType input, output;
};
class FoldParity : public OnDevice<testing::TestWithParam<FoldCase>> {};
INSTANTIATE_TEST_SUITE_P(DTypes, FoldParity,
                         testing::Values(FoldCase{DType::kBF16, DType::kBF16},
                                         FoldCase{DType::kBF16, DType::kFP32},
                                         FoldCase{DType::kFP32, DType::kBF16},
                                         FoldCase{DType::kFP32, DType::kFP32}));

TEST_P(FoldParity, EveryLengthAlignmentAndNumberOfInputs) {
  const auto [input, output] = GetParam();
  for (size_t inputs : {1u, 2u, 7u}) {
    for (int64_t count : {1, 8, 33, 256, 700}) {
      for (size_t offset : {size_t{0}, size_t{1}}) {
        std::vector<std::vector<uint32_t>> tensors;
        std::vector<const void*> pointers;
        for (size_t k = 0; k < inputs; ++k) {
          tensors.push_back(random_tensor(input, static_cast<size_t>(count) + offset, 10 * k + 1));
          if (count == 700 && k == 1) {  // NaN and opposite infinities
            tensors[0][5] = input == DType::kFP32 ? 0x7f800000u : 0x7f807f80u;
            tensors[1][5] = input == DType::kFP32 ? 0xff800000u : 0xffc1ff80u;
          }
        }
        for (auto& tensor : tensors) {
          pointers.push_back(reinterpret_cast<const std::byte*>(tensor.data()) +
                             offset * size_of(input));
        }
        std::vector<uint32_t> on_cpu(static_cast<size_t>(count)), on_device = on_cpu;
        cpu::fold({Tensor(on_cpu.data(), output, {count}), pointers, input}, serial);
        device_under_test::fold({Tensor(on_device.data(), output, {count}), pointers, input});
        ASSERT_EQ(on_device, on_cpu) << inputs << " inputs, " << count << " elements";
      }
    }
  }
}

class Folds : public OnDevice<testing::Test> {};

TEST_F(Folds, TheOutputMayBeAnInput) {
  std::vector<uint32_t> a = random_tensor(DType::kFP32, 300, 1);
  const std::vector<uint32_t> b = random_tensor(DType::kFP32, 300, 2);
  std::vector<uint32_t> expected(300);
  const std::array<const void*, 2> inputs = {b.data(), a.data()};
  cpu::fold({Tensor(expected.data(), DType::kFP32, {300}), inputs, DType::kFP32}, serial);
  device_under_test::fold({Tensor(a.data(), DType::kFP32, {300}), inputs, DType::kFP32});
  EXPECT_EQ(a, expected);
}

TEST_F(Folds, MayStartWithWhatAnFP32OutputHolds) {
  std::vector<uint32_t> on_device = random_tensor(DType::kFP32, 300, 1), on_cpu = on_device;
  const std::vector<uint32_t> a = random_tensor(DType::kBF16, 300, 2);
  const std::vector<uint32_t> b = random_tensor(DType::kBF16, 300, 3);
  const std::array<const void*, 2> inputs = {a.data(), b.data()};
  const auto call = [&](std::vector<uint32_t>& out) {
    return Fold{Tensor(out.data(), DType::kFP32, {300}), inputs, DType::kBF16, true};
  };
  cpu::fold(call(on_cpu), serial);
  device_under_test::fold(call(on_device));
  EXPECT_EQ(on_device, on_cpu);
}

TEST_F(Folds, OfTooManyOrNoInputsAreRefused) {
  std::vector<uint32_t> memory(8);
  const Tensor out(memory.data(), DType::kBF16, {8});
  const std::vector<const void*> inputs(1025, memory.data());
  EXPECT_THROW(device_under_test::fold({out, inputs, DType::kBF16}), Error);
  EXPECT_THROW(device_under_test::fold({out, {}, DType::kBF16}), Error);
}

class NormParity : public OnDevice<testing::TestWithParam<DType>> {};
INSTANTIATE_TEST_SUITE_P(DTypes, NormParity, testing::Values(DType::kBF16, DType::kFP32));

TEST_P(NormParity, OfManyTensorsOfEveryLengthAndAlignment) {
  std::vector<std::vector<uint32_t>> memory;
  std::vector<Tensor> tensors;
  for (int64_t count = 0; count < 170; ++count) {
    memory.push_back(random_tensor(GetParam(), static_cast<size_t>(5 * count + 2), 3 + count));
  }
  for (size_t k = 0; k < memory.size(); ++k) {
    std::byte* data = reinterpret_cast<std::byte*>(memory[k].data()) + k % 3 * size_of(GetParam());
    tensors.emplace_back(data, GetParam(),
                         std::initializer_list<int64_t>{5 * static_cast<int64_t>(k)});
  }
  // NaN, 2^60 and what is just below it.
  const auto set = [&](size_t tensor, size_t i, uint32_t bits) {
    if (GetParam() == DType::kFP32) {
      tensors[tensor].as<uint32_t>()[i] = bits;
    } else {
      tensors[tensor].as<uint16_t>()[i] = static_cast<uint16_t>(bits >> 16);
    }
  };
  set(100, 300, 0x7fc00000u);
  set(101, 40, 0xdd800000u);
  set(102, 40, 0x5d7f0000u);
  using Limbs = std::array<int64_t, numerics::kExactSumLimbs>;
  Limbs on_cpu = {}, on_device = {};
  int64_t cpu_groups = 0, device_groups = 0;
  cpu::exact_norm({tensors, on_cpu, &cpu_groups}, serial);
  device_under_test::exact_norm({tensors, on_device, &device_groups});
  EXPECT_EQ(on_device, on_cpu);
  EXPECT_EQ(device_groups, 2);
  EXPECT_EQ(cpu_groups, 2);
  device_under_test::exact_norm({{tensors.data() + 169, 1}, on_device, nullptr});
  cpu::exact_norm({{tensors.data() + 169, 1}, on_cpu, nullptr}, serial);
  EXPECT_EQ(on_device, on_cpu) << "added into";
}

}  // namespace
}  // namespace flashshard
