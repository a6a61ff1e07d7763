// The C interface: the kernels' bits for every rule and format, and, for whatever is wrong with the
// arguments, a status, a text and untouched memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cfenv>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels/capi/flashshard.h"
#include "kernels/cpu/update_loops.h"
#include "tests/kernels/numerics/update_state.h"
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace flashshard {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kCount = 301;

fs_buffer buffer(const void* data, size_t bytes) {
  return {data == nullptr || bytes == 0 ? nullptr : const_cast<void*>(data), bytes};
}
template <class T>
fs_buffer buffer(std::vector<T>& values) {
  return buffer(values.data(), values.size() * sizeof(T));
}

/// The same tensor for the C interface.
fs_tensor tensor_of(const UpdateTensor& t) {
  const auto count = static_cast<size_t>(t.count);
  const size_t state = has_codes(t.state_format) ? 1 : 4, scales = 2 * ((count + 31) / 32);
  const auto given = [](const void* data, size_t bytes) { return data == nullptr ? 0 : bytes; };
  fs_tensor tensor = {};
  tensor.struct_size = sizeof(fs_tensor);
  tensor.weight_format = static_cast<int32_t>(t.weight_format);
  tensor.state_format = static_cast<int32_t>(t.state_format);
  tensor.gradient_type = t.gradient_dtype == DType::kBF16 ? FS_TYPE_BF16 : FS_TYPE_FP32;
  tensor.count = t.count;
  tensor.first_element = t.first_element;
  tensor.seed = t.key.seed;
  tensor.tensor_id = t.key.tensor;
  tensor.gradient = buffer(t.gradient, count * size_of(t.gradient_dtype));
  tensor.weight = buffer(t.weight, count * static_cast<size_t>(weight_bytes(t.weight_format)));
  tensor.correction =
      buffer(t.correction, count * static_cast<size_t>(correction_bytes(t.weight_format)));
  tensor.momentum = buffer(t.momentum, given(t.momentum, count * state));
  tensor.momentum_scales = buffer(t.momentum_scale, given(t.momentum_scale, scales));
  tensor.variance = buffer(t.variance, given(t.variance, count * state));
  tensor.variance_scales = buffer(t.variance_scale, given(t.variance_scale, scales));
  return tensor;
}

fs_step step_of(const RuleCase& rule, Rounding rounding) {
  fs_step step = {};
  step.struct_size = sizeof(fs_step);
  step.rule = static_cast<int32_t>(rule.rule);
  step.rounding = rounding == Rounding::kStochastic ? FS_STOCHASTIC : FS_NEAREST;
  step.nesterov = rule.hyper.nesterov ? 1 : 0;
  step.learning_rate = 0.01;
  step.beta1 = rule.hyper.beta1;
  step.beta2 = rule.hyper.beta2;
  step.epsilon = rule.hyper.epsilon;
  step.dampening = rule.hyper.dampening;
  step.weight_decay = 0.01;
  step.gradient_factor = 0.75;
  step.t = 3;
  return step;
}

class CApi : public testing::TestWithParam<UpdateCase> {};
INSTANTIATE_TEST_SUITE_P(All, CApi, testing::ValuesIn(all_update_cases()),
                         [](const auto& instance) { return name_of(instance.param); });

TEST_P(CApi, AStepHasTheKernelsBits) {
  const RuleCase& rule = GetParam().rule;
  for (const UpdateFormat& format : formats_with(GetParam().state)) {
    SCOPED_TRACE(name_of(format));
    UpdateState expected(rule, format, kCount, 64);
    expected.fill(1, 10);
    UpdateState state = expected;
    const UpdateFactors factors =
        make_update_factors(rule.rule, rule.hyper, 0.01, 0.75, format.rounding, 3);
    cpu::update_loops().update(expected.tensor(), factors, 0, kCount);
    const fs_tensor tensor = tensor_of(state.tensor());
    const fs_step step = step_of(rule, format.rounding);
    int64_t rejected = 0;
    ASSERT_EQ(fs_apply_step(&tensor, &step, &rejected), FS_OK) << fs_last_error();
    EXPECT_TRUE(state == expected);
    EXPECT_EQ(rejected, 0);
  }
}

TEST(CApiStep, LeavesAGroupWithANonFiniteGradientAndCountsIt) {
  UpdateState state(rule_cases()[0], {}, kCount);
  state.fill(2, 10);
  state.set_gradient(40, std::numeric_limits<float>::infinity());
  UpdateState before = state;
  const fs_tensor tensor = tensor_of(state.tensor());
  const fs_step step = step_of(rule_cases()[0], Rounding::kStochastic);
  int64_t rejected = 5, nonfinite = 0;
  ASSERT_EQ(fs_check_finite(tensor.gradient, FS_TYPE_BF16, kCount, &nonfinite), FS_OK);
  EXPECT_EQ(nonfinite, 1);
  ASSERT_EQ(fs_apply_step(&tensor, &step, &rejected), FS_OK);
  EXPECT_EQ(rejected, 6);
  for (size_t i = 32; i < 64; ++i) EXPECT_EQ(state.weight(i), before.weight(i));
  EXPECT_NE(state.weight(1), before.weight(1));
}

// Without gradient and momentum nothing else changes a weight.
TEST(CApiStep, WithAPeakRateDecaysByTheRatesShareOfIt) {
  const auto weight_after = [](fs_rule rule, double rate, double peak) {
    std::vector<float> gradient(kCount), weight(kCount, 2.0f), momentum(kCount), variance(kCount);
    fs_tensor tensor = {};
    tensor.struct_size = sizeof(tensor);
    tensor.weight_format = FS_FP32;
    tensor.state_format = FS_STATE_FP32;
    tensor.gradient_type = FS_TYPE_FP32;
    tensor.count = kCount;
    tensor.gradient = buffer(gradient);
    tensor.weight = buffer(weight);
    tensor.momentum = buffer(momentum);
    if (rule == FS_ADAMW) tensor.variance = buffer(variance);
    fs_step step = step_of(rule_cases()[0], Rounding::kNearest);
    step.rule = rule;
    step.learning_rate = rate;
    step.peak_learning_rate = peak;
    step.weight_decay = 0.5;
    EXPECT_EQ(fs_apply_step(&tensor, &step, nullptr), FS_OK) << fs_last_error();
    EXPECT_EQ(weight, std::vector<float>(kCount, weight[0])) << "not the same for all elements";
    return weight[0];
  };
  for (const fs_rule rule : {FS_ADAMW, FS_LION, FS_SGDW}) {
    SCOPED_TRACE(rule);
    EXPECT_EQ(weight_after(rule, 0.25, 0), 2 * (1 - 0.5f * 0.25f)) << "no peak";
    EXPECT_EQ(weight_after(rule, 0.25, 0.25), 2 * (1 - 0.5f));
    EXPECT_EQ(weight_after(rule, 0.25, 0.5), 2 * (1 - 0.5f * 0.5f));
    EXPECT_EQ(weight_after(rule, 0x1p-12, 0x1p-11), 2 * (1 - 0.5f * 0.5f)) << "whatever the size";
    EXPECT_EQ(weight_after(rule, 0x1p-13, 0x1p-11), 2 * (1 - 0.5f * 0.25f));
    EXPECT_EQ(weight_after(rule, 0, 0.5), 2);
  }
}

TEST(CApiStep, RefusesACounterThatIsMisalignedOrLiesInATensor) {
  UpdateState state(rule_cases()[0], {}, kCount);
  state.fill(3, 8);
  const fs_tensor tensor = tensor_of(state.tensor());
  const fs_step step = step_of(rule_cases()[0], Rounding::kStochastic);
  const std::pair<const char*, fs_buffer> buffers[] = {{"gradient", tensor.gradient},
                                                       {"weight", tensor.weight},
                                                       {"correction", tensor.correction},
                                                       {"momentum", tensor.momentum},
                                                       {"momentum_scales", tensor.momentum_scales},
                                                       {"variance", tensor.variance},
                                                       {"variance_scales", tensor.variance_scales}};
  const UpdateState before = state;
  const auto gradient_bytes = [&] {
    const auto* bytes = static_cast<const char*>(tensor.gradient.data);
    return std::string(bytes, bytes + tensor.gradient.bytes);
  };
  const std::string gradient_before = gradient_bytes();
  for (const auto& [name, memory] : buffers) {
    SCOPED_TRACE(name);
    // A multiple of 8 within it.
    const uintptr_t inside = (reinterpret_cast<uintptr_t>(memory.data) + 7) / 8 * 8;
    auto* const counter = reinterpret_cast<int64_t*>(inside);
    EXPECT_EQ(fs_apply_step(&tensor, &step, counter), FS_OVERLAP);
    EXPECT_THAT(fs_last_error(), HasSubstr(name));
    EXPECT_THAT(fs_last_error(), HasSubstr("rejected_groups"));
    EXPECT_TRUE(state == before);
    EXPECT_EQ(gradient_bytes(), gradient_before);
  }
  std::array<int64_t, 2> counters = {5, 5};
  auto* const odd = reinterpret_cast<int64_t*>(reinterpret_cast<char*>(counters.data()) + 4);
  EXPECT_EQ(fs_apply_step(&tensor, &step, odd), FS_MISALIGNED);
  EXPECT_TRUE(state == before);
  EXPECT_EQ(fs_apply_step(&tensor, &step, counters.data()), FS_OK) << fs_last_error();
  EXPECT_FALSE(state == before);
}

TEST(CApiStep, TakesWhatIsJustFiniteInFP32) {
  const auto status_of = [](const std::function<void(fs_step&)>& change) {
    UpdateState state(rule_cases()[0], {}, kCount);
    const fs_tensor tensor = tensor_of(state.tensor());
    fs_step step = step_of(rule_cases()[0], Rounding::kNearest);
    step.weight_decay = 0;
    step.t = 1;
    change(step);
    return fs_apply_step(&tensor, &step, nullptr);
  };
  // Each beside the row of bad_steps() with the next larger one.
  EXPECT_EQ(status_of([](auto& s) { s.learning_rate = 3e37; }), FS_OK) << fs_last_error();
  EXPECT_EQ(status_of([](auto& s) { s.beta1 = 1 - 0x1p-24; }), FS_OK) << fs_last_error();
  EXPECT_EQ(status_of([](auto& s) { s.beta2 = 1 - 0x1p-24; }), FS_OK) << fs_last_error();
  EXPECT_EQ(status_of([](auto& s) { s.epsilon = 3e38; }), FS_OK) << fs_last_error();
  EXPECT_EQ(status_of([](auto& s) { s.gradient_factor = 3e38; }), FS_OK) << fs_last_error();
}

TEST(CApiCodecs, EncodeAndDecodeEveryWeightFormat) {
  std::vector<float> values, decoded(kCount);
  for (int i = 0; i < kCount; ++i) values.push_back(std::sin(static_cast<float>(i)) * 3);
  for (int format = FS_SPLIT24; format <= FS_FP16; ++format) {
    const auto f = static_cast<WeightFormat>(format);
    std::vector<uint8_t> weight(kCount * static_cast<size_t>(weight_bytes(f)) + 4);
    std::vector<uint8_t> correction(kCount * static_cast<size_t>(correction_bytes(f)) + 2);
    fs_master call = {sizeof(fs_master),
                      format,
                      kCount,
                      buffer(values),
                      buffer(weight.data(), weight.size() - 4),
                      buffer(correction.data(), correction.size() - 2)};
    int64_t rejected = 0;
    ASSERT_EQ(fs_encode_master(&call, &rejected), FS_OK) << fs_last_error();
    EXPECT_EQ(rejected, 0);
    call.values = buffer(decoded);
    ASSERT_EQ(fs_decode_master(&call), FS_OK) << fs_last_error();
    const double precision = format == FS_BF16 ? 0x1p-8 : format == FS_FP16 ? 0x1p-11 : 0x1p-15;
    for (size_t i = 0; i < kCount; ++i) {
      ASSERT_NEAR(decoded[i], values[i], precision * std::fabs(values[i]) + 1e-9) << format;
    }
  }
}

class CApiMoments : public testing::TestWithParam<std::pair<int, int>> {};
INSTANTIATE_TEST_SUITE_P(Formats, CApiMoments,
                         testing::Values(std::pair{FS_STATE_V2, FS_MOMENTUM},
                                         std::pair{FS_STATE_V2, FS_VARIANCE},
                                         std::pair{FS_STATE_FLASHOPTIM_V1, FS_MOMENTUM},
                                         std::pair{FS_STATE_FLASHOPTIM_V1, FS_VARIANCE}));

TEST_P(CApiMoments, AreEncodedAndDecodedWithinTheirPrecision) {
  const auto [format, moment] = GetParam();
  std::vector<float> values, decoded(kCount);
  for (int i = 0; i < kCount; ++i) {
    const float value = std::sin(static_cast<float>(i));
    values.push_back(moment == FS_VARIANCE ? value * value : value);
  }
  std::vector<uint8_t> codes(kCount);
  std::vector<uint16_t> scales(10);
  fs_moments call = {sizeof(fs_moments), format,        moment,        0, kCount,
                     buffer(values),     buffer(codes), buffer(scales)};
  int64_t rejected = 0;
  ASSERT_EQ(fs_encode_moments(&call, &rejected), FS_OK) << fs_last_error();
  EXPECT_EQ(rejected, 0);
  call.values = buffer(decoded);
  ASSERT_EQ(fs_decode_moments(&call), FS_OK) << fs_last_error();
  for (size_t i = 0; i < kCount; ++i) ASSERT_NEAR(decoded[i], values[i], 0.01) << i;

  values[70] = std::numeric_limits<float>::quiet_NaN();
  call.values = buffer(values);
  const std::vector<uint8_t> before = codes;
  ASSERT_EQ(fs_encode_moments(&call, &rejected), FS_OK);
  EXPECT_EQ(rejected, 1);
  EXPECT_EQ(codes, before);

  scales[3] = 0xffff;
  EXPECT_EQ(fs_decode_moments(&call), FS_CORRUPT);
  EXPECT_THAT(fs_last_error(), HasSubstr("scales[3]"));
}

TEST(CApiNorm, IsTheSameForEverySplit) {
  std::vector<float> values(1000);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = std::ldexp(1.0f + static_cast<float>(i), static_cast<int>(i % 40) - 20);
  std::vector<int64_t> whole(FS_NORM_LIMBS), parts(FS_NORM_LIMBS);
  int64_t nonfinite = 0;
  ASSERT_EQ(fs_add_squares(buffer(values), FS_TYPE_FP32, 1000, whole.data(), &nonfinite), FS_OK);
  const fs_buffer tail = buffer(values.data() + 320, 680 * sizeof(float));
  const fs_buffer head = buffer(values.data(), 320 * sizeof(float));
  ASSERT_EQ(fs_add_squares(tail, FS_TYPE_FP32, 680, parts.data(), nullptr), FS_OK);
  ASSERT_EQ(fs_add_squares(head, FS_TYPE_FP32, 320, parts.data(), nullptr), FS_OK);
  EXPECT_EQ(nonfinite, 0);
  double a = 0, b = 0, squares = 0;
  ASSERT_EQ(fs_norm(whole.data(), &a), FS_OK);
  ASSERT_EQ(fs_norm(parts.data(), &b), FS_OK);
  EXPECT_EQ(a, b);
  for (float v : values) squares += double{v} * v;
  EXPECT_NEAR(a, std::sqrt(squares), 1e-6 * a);
}

// ---- bad arguments ----

struct BadStep {
  const char* name;
  fs_status status;
  const char* text;
  std::function<void(fs_tensor&, fs_step&)> spoil;
};
class BadArguments : public testing::TestWithParam<BadStep> {};

std::vector<BadStep> bad_steps() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  return {
      {"ShortWeights", FS_WRONG_SIZE, "weight has 600 bytes, the call needs 602",
       [](auto& t, auto&) { t.weight.bytes = 600; }},
      {"LongGradient", FS_WRONG_SIZE, "gradient", [](auto& t, auto&) { t.gradient.bytes += 2; }},
      {"NoVariance", FS_WRONG_SIZE, "variance", [](auto& t, auto&) { t.variance = {}; }},
      {"UnneededVariance", FS_WRONG_SIZE, "variance has 301 bytes, the call needs 0",
       [](auto&, auto& s) { s.rule = FS_LION; }},
      {"NullWithBytes", FS_INVALID_ARGUMENT, "correction is null",
       [](auto& t, auto&) { t.correction.data = nullptr; }},
      {"MisalignedWeights", FS_MISALIGNED, "weight does not start at a multiple of 2",
       [](auto& t, auto&) { t.weight.data = static_cast<char*>(t.weight.data) + 1; }},
      {"OverlappingStates", FS_OVERLAP, "momentum and variance share memory",
       [](auto& t, auto&) { t.variance.data = static_cast<char*>(t.momentum.data) + 32; }},
      {"GradientOverWeights", FS_OVERLAP, "gradient and weight share memory",
       [](auto& t, auto&) { t.gradient.data = t.weight.data; }},
      {"NegativeCount", FS_INVALID_ARGUMENT, "count is -1", [](auto& t, auto&) { t.count = -1; }},
      {"HugeCount", FS_INVALID_ARGUMENT, "2^48", [](auto& t, auto&) { t.count = INT64_MAX; }},
      {"CutGroup", FS_INVALID_ARGUMENT, "first_element is 16",
       [](auto& t, auto&) { t.first_element = 16; }},
      {"ElementBeyondAnyTensor", FS_INVALID_ARGUMENT, "2^62",
       [](auto& t, auto&) { t.first_element = INT64_MAX - 31; }},
      {"NegativePeakRate", FS_OUT_OF_RANGE, "peak learning rate",
       [](auto&, auto& s) { s.peak_learning_rate = -1; }},
      {"RateBeyondFP32", FS_OUT_OF_RANGE, "fp32", [](auto&, auto& s) { s.learning_rate = 1e300; }},
      {"StepSizeBeyondFP32", FS_OUT_OF_RANGE, "learning rate over 1 - beta1^t",
       [](auto&, auto& s) {
         s.learning_rate = 3e38;  // itself an fp32 number
         s.t = 1;
       }},
      {"GradientFactorBeyondFP32", FS_OUT_OF_RANGE, "gradient factor",
       [](auto&, auto& s) { s.gradient_factor = 4e38; }},
      {"EpsilonBeyondFP32", FS_OUT_OF_RANGE, "epsilon must be positive and finite in fp32",
       [](auto&, auto& s) { s.epsilon = 4e38; }},
      {"DecayBeyondFP32", FS_OUT_OF_RANGE, "weight decay must be 0 or more, and an fp32 number",
       [](auto&, auto& s) {
         s.learning_rate = 0;
         s.weight_decay = 4e38;
       }},
      {"UnknownWeightFormat", FS_INVALID_ARGUMENT, "weight_format is 9",
       [](auto& t, auto&) { t.weight_format = 9; }},
      {"UnknownStateFormat", FS_INVALID_ARGUMENT, "state_format is -1",
       [](auto& t, auto&) { t.state_format = -1; }},
      {"UnknownType", FS_INVALID_ARGUMENT, "gradient_type",
       [](auto& t, auto&) { t.gradient_type = 2; }},
      {"UnknownRule", FS_INVALID_ARGUMENT, "rule is 5", [](auto&, auto& s) { s.rule = 5; }},
      {"UnknownRounding", FS_INVALID_ARGUMENT, "rounding", [](auto&, auto& s) { s.rounding = 7; }},
      {"WrongStruct", FS_INVALID_ARGUMENT, "fs_tensor.struct_size is 8",
       [](auto& t, auto&) { t.struct_size = 8; }},
      {"UnsetStruct", FS_INVALID_ARGUMENT, "fs_step.struct_size is 0",
       [](auto&, auto& s) { s.struct_size = 0; }},
      {"HugeStruct", FS_INVALID_ARGUMENT, "fs_step.struct_size is 4294967295",
       [](auto&, auto& s) { s.struct_size = UINT32_MAX; }},
      {"CorruptScale", FS_CORRUPT, "momentum_scales[2] is 66",
       [](auto& t, auto&) { static_cast<uint16_t*>(t.momentum_scales.data)[2] = 66; }},
      {"NegativeRate", FS_OUT_OF_RANGE, "learning rate",
       [](auto&, auto& s) { s.learning_rate = -1; }},
      {"RateIsNaN", FS_OUT_OF_RANGE, "learning rate",
       [nan](auto&, auto& s) { s.learning_rate = nan; }},
      {"BetaIsNaN", FS_OUT_OF_RANGE, "beta2", [nan](auto&, auto& s) { s.beta2 = nan; }},
      {"BetaOfOne", FS_OUT_OF_RANGE, "beta1", [](auto&, auto& s) { s.beta1 = 1; }},
      {"Beta1OfOneInFP32", FS_OUT_OF_RANGE, "beta1 must lie in [0, 1) in fp32",
       [](auto&, auto& s) { s.beta1 = 1 - 1e-12; }},
      {"Beta2OfOneInFP32", FS_OUT_OF_RANGE, "beta2 must lie in [0, 1) in fp32",
       [](auto&, auto& s) { s.beta2 = 1 - 0x1p-25; }},
      {"MomentumOfOneInFP32", FS_OUT_OF_RANGE, "momentum must lie in [0, 1) in fp32",
       [](auto&, auto& s) {
         s.rule = FS_SGDW;
         s.beta1 = 1 - 0x1p-25;
       }},
      {"NegativeBeta", FS_OUT_OF_RANGE, "beta2", [](auto&, auto& s) { s.beta2 = -0.5; }},
      {"NoEpsilon", FS_OUT_OF_RANGE, "epsilon", [](auto&, auto& s) { s.epsilon = 0; }},
      {"StepZero", FS_OUT_OF_RANGE, "counted from 1", [](auto&, auto& s) { s.t = 0; }},
      {"DecayThatTurnsWeights", FS_OUT_OF_RANGE, "keep a part",
       [](auto&, auto& s) { s.weight_decay = 200; }},
  };
}
INSTANTIATE_TEST_SUITE_P(All, BadArguments, testing::ValuesIn(bad_steps()),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST_P(BadArguments, GiveAStatusAndATextAndChangeNothing) {
  UpdateState state(rule_cases()[0], {}, kCount);
  state.fill(4, 8);
  fs_tensor tensor = tensor_of(state.tensor());
  fs_step step = step_of(rule_cases()[0], Rounding::kStochastic);
  GetParam().spoil(tensor, step);
  UpdateState before = state;
  int64_t rejected = 0;
  EXPECT_EQ(fs_apply_step(&tensor, &step, &rejected), GetParam().status);
  EXPECT_THAT(fs_last_error(), HasSubstr(GetParam().text));
  EXPECT_TRUE(state == before);
  EXPECT_EQ(rejected, 0);
}

TEST(CApiCalls, RefuseNullAndWhatHasNoCodes) {
  EXPECT_EQ(fs_apply_step(nullptr, nullptr, nullptr), FS_INVALID_ARGUMENT);
  EXPECT_EQ(fs_encode_master(nullptr, nullptr), FS_INVALID_ARGUMENT);
  EXPECT_EQ(fs_decode_moments(nullptr), FS_INVALID_ARGUMENT);
  EXPECT_EQ(fs_norm(nullptr, nullptr), FS_INVALID_ARGUMENT);
  fs_moments call = {};
  call.struct_size = sizeof(call);
  call.format = FS_STATE_FP32;
  EXPECT_EQ(fs_encode_moments(&call, nullptr), FS_INVALID_ARGUMENT);
  EXPECT_THAT(fs_last_error(), HasSubstr("no codes"));
}

TEST(CApiCalls, AcceptALaterVersionsStructUnlessItUsesWhatIsNewInIt) {
  struct Later {
    fs_master known;
    uint64_t appended;
  } later = {};
  later.known.struct_size = sizeof(later);
  EXPECT_EQ(fs_encode_master(&later.known, nullptr), FS_OK) << fs_last_error();
  later.appended = 1;
  EXPECT_EQ(fs_encode_master(&later.known, nullptr), FS_INVALID_ARGUMENT);
  EXPECT_THAT(fs_last_error(), HasSubstr("fields that this version does not know"));
}

TEST(CApiCalls, OnNothingDoNothing) {
  fs_master master = {};
  master.struct_size = sizeof(master);
  EXPECT_EQ(fs_encode_master(&master, nullptr), FS_OK) << fs_last_error();
  std::vector<int64_t> limbs(FS_NORM_LIMBS);
  EXPECT_EQ(fs_add_squares({}, FS_TYPE_BF16, 0, limbs.data(), nullptr), FS_OK);
  double norm = -1;
  EXPECT_EQ(fs_norm(limbs.data(), &norm), FS_OK);
  EXPECT_EQ(norm, 0);
}

TEST(CApiCalls, TakeLimbsUpToTwoToThe62) {
  std::vector<int64_t> limbs(FS_NORM_LIMBS);
  limbs[4] = int64_t{1} << 62;  // of units 2^(128 - 149)
  double norm = 0;
  EXPECT_EQ(fs_norm(limbs.data(), &norm), FS_OK) << fs_last_error();
  EXPECT_EQ(norm, std::sqrt(0x1p41));
  ++limbs[4];
  EXPECT_EQ(fs_norm(limbs.data(), &norm), FS_INVALID_ARGUMENT);
}

TEST(CApiCalls, RefuseAThreadThatRoundsAnotherWay) {
  fs_master master = {};
  master.struct_size = sizeof(master);
  ASSERT_EQ(std::fesetround(FE_UPWARD), 0);
  const fs_status status = fs_encode_master(&master, nullptr);
  std::fesetround(FE_TONEAREST);
  EXPECT_EQ(status, FS_ENVIRONMENT);
  EXPECT_THAT(fs_last_error(), HasSubstr("to nearest"));
}

#if defined(__SSE__)
TEST(CApiCalls, RefuseAThreadWhoseSSEUnitAloneRoundsAnotherWay) {
  fs_master master = {};
  master.struct_size = sizeof(master);
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x4000);  // upwards
  const fs_status status = fs_encode_master(&master, nullptr);
  _mm_setcsr(before);
  EXPECT_EQ(status, FS_ENVIRONMENT);
  EXPECT_THAT(fs_last_error(), HasSubstr("MXCSR"));
}
#endif

TEST(CApiCalls, RefuseCountersAndLimbsThatCannotBeWritten) {
  std::vector<int64_t> limbs(FS_NORM_LIMBS);
  EXPECT_EQ(fs_add_squares({limbs.data(), 8}, FS_TYPE_FP32, 2, limbs.data(), nullptr), FS_OVERLAP);
  fs_master master = {};
  master.struct_size = sizeof(master);
  auto* const odd = reinterpret_cast<int64_t*>(reinterpret_cast<char*>(limbs.data()) + 4);
  EXPECT_EQ(fs_encode_master(&master, odd), FS_MISALIGNED);
}

TEST(CApiCalls, NameTheirVersionAndInstructionSet) {
  EXPECT_STREQ(fs_version(), "1.0.0");
  EXPECT_EQ(fs_instruction_set(), cpu::update_loops().name);
}

}  // namespace
}  // namespace flashshard
