// Owned memory of one parameter's weight, gradient and state, with random contents, for the tests
// of the update.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/update_loops.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/formats.h"
#include "kernels/numerics/update_args.h"

namespace flashshard {

/// A rule with the settings that choose its code.
struct RuleCase {
  const char* name;
  Rule rule;
  RuleHyperparameters hyper;
};
inline const std::vector<RuleCase>& rule_cases() {
  static const std::vector<RuleCase> cases = {
      {"AdamW", Rule::kAdamW, {.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8}},
      {"Adam", Rule::kAdam, {.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8}},
      {"Lion", Rule::kLion, {.beta1 = 0.9, .beta2 = 0.99}},
      {"SGD", Rule::kSGD, {.beta1 = 0.9, .dampening = 0.25}},
      {"SGDW", Rule::kSGDW, {.beta1 = 0.9}},
      {"NesterovSGD", Rule::kSGD, {.beta1 = 0.9, .nesterov = true}},
      {"PlainSGD", Rule::kSGD, {.beta1 = 0}},
      {"PlainSGDW", Rule::kSGDW, {.beta1 = 0}}};
  return cases;
}

/// One combination of formats.
struct UpdateFormat {
  WeightFormat weight = WeightFormat::kSplit24;
  StateFormat state = StateFormat::kCompanded;
  DType gradient = DType::kBF16;
  Rounding rounding = Rounding::kStochastic;
};

inline std::string name_of(StateFormat format) {
  return format == StateFormat::kCompanded ? "V2"
         : format == StateFormat::kFP32    ? "FP32State"
                                           : "V1";
}
inline std::string name_of(const UpdateFormat& f) {
  const char* weights[] = {
      "Split24",         "Split32",         "BF16", "FP32", "Corrected24", "Corrected32",
      "FP16Corrected24", "FP16Corrected32", "FP16"};
  return std::string(weights[static_cast<int>(f.weight)]) + name_of(f.state) +
         (f.gradient == DType::kBF16 ? "BF16Gradient" : "FP32Gradient") +
         (f.rounding == Rounding::kNearest ? "Nearest" : "Stochastic");
}

/// 24-bit and plain bf16 weights do, and V2's codes whatever the weight.
constexpr bool rounds_stochastically(WeightFormat weight, StateFormat state) {
  return weight == WeightFormat::kSplit24 || weight == WeightFormat::kBF16 ||
         state == StateFormat::kCompanded;
}
/// Every weight format with every rounding that it has, and both types of gradients.
inline std::vector<UpdateFormat> formats_with(StateFormat state) {
  std::vector<UpdateFormat> formats;
  for (int w = 0; w <= static_cast<int>(WeightFormat::kFP16); ++w) {
    const auto weight = static_cast<WeightFormat>(w);
    formats.push_back(
        {weight, state, w % 2 == 0 ? DType::kBF16 : DType::kFP32, Rounding::kNearest});
    if (rounds_stochastically(weight, state)) {
      formats.push_back({weight, state, DType::kBF16, Rounding::kStochastic});
      formats.push_back({weight, state, DType::kFP32, Rounding::kStochastic});
    }
  }
  return formats;
}

/// A rule on one state format: what the tests are parameterised by.
struct UpdateCase {
  RuleCase rule;
  StateFormat state;
};
inline std::vector<UpdateCase> all_update_cases() {
  std::vector<UpdateCase> cases;
  for (const RuleCase& rule : rule_cases()) {
    for (auto state : {StateFormat::kCompanded, StateFormat::kFP32, StateFormat::kFlashOptim}) {
      const bool stateless = !has_momentum(rule.rule, rule.hyper.beta1);
      if (!stateless || state == StateFormat::kFP32) cases.push_back({rule, state});
    }
  }
  return cases;
}
inline std::string name_of(const UpdateCase& c) { return c.rule.name + name_of(c.state); }
inline void PrintTo(const UpdateCase& c, std::ostream* out) { *out << name_of(c); }

inline float half_to_float(uint16_t half) {
  const int exponent = (half >> 10) & 0x1f;
  const float mantissa = static_cast<float>((half & 0x3ff) + (exponent > 0 ? 0x400 : 0));
  const float magnitude = std::ldexp(mantissa, std::max(exponent, 1) - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

/// Memory that starts `offset` elements after an aligned address.
template <class T>
class OffsetArray {
 public:
  OffsetArray(size_t count, size_t offset) : values_(count + offset), offset_(offset) {}
  T* data() { return values_.data() + offset_; }
  T& operator[](size_t i) { return values_[offset_ + i]; }

 private:
  std::vector<T> values_;
  size_t offset_;
};

class UpdateState {
 public:
  UpdateState(const RuleCase& rule, const UpdateFormat& format, int64_t count,
              int64_t first_element = 0, size_t offset = 0)
      : rule_(rule),
        format_(format),
        count_(count),
        first_element_(first_element),
        groups_(static_cast<size_t>((count + kGroup - 1) / kGroup)),
        weight16(size(), offset),
        weight32(size(), offset),
        correction8(size(), offset),
        correction16(size(), offset),
        momentum8(size(), offset),
        variance8(size(), offset),
        momentum32(size(), offset),
        variance32(size(), offset),
        momentum_scale(groups_, offset),
        variance_scale(groups_, offset),
        gradient16(size(), offset),
        gradient32(size(), offset) {
    for (size_t g = 0; g < groups_; ++g) momentum_scale[g] = variance_scale[g] = fresh_scale();
  }

  size_t size() const { return static_cast<size_t>(count_); }
  size_t groups() const { return groups_; }

  uint16_t fresh_scale() const {
    return format_.state == StateFormat::kFlashOptim ? uint16_t{0} : numerics::kSmallestScaleCode;
  }

  void set_weight(size_t i, float value) {
    EncodeMaster call{.format = format_.weight, .values = &value, .count = 1};
    call.weight =
        format_.weight == WeightFormat::kFP32 ? static_cast<void*>(&weight32[i]) : &weight16[i];
    call.correction = correction_bytes(format_.weight) == 1 ? static_cast<void*>(&correction8[i])
                                                            : &correction16[i];
    cpu::scalar_update_loops().encode_master(call, 0, 1);
  }
  void set_gradient(size_t i, float value) {
    gradient16[i] = float_to_bf16(value);
    gradient32[i] = value;
  }
  float gradient(size_t i) {
    return format_.gradient == DType::kBF16 ? bf16_to_float(gradient16[i]) : gradient32[i];
  }
  float weight(size_t i) {
    switch (format_.weight) {
      case WeightFormat::kSplit24:
        return split(weight16[i], correction8[i] * 256);
      case WeightFormat::kSplit32:
        return split(weight16[i], correction16[i]);
      case WeightFormat::kBF16:
        return bf16_to_float(weight16[i]);
      case WeightFormat::kCorrected24:
        return corrected(bf16_to_float(weight16[i]), 7, -126, correction8[i] / 127.0f);
      case WeightFormat::kCorrected32:
        return corrected(bf16_to_float(weight16[i]), 7, -126, correction16[i] / 32767.0f);
      case WeightFormat::kFP16Corrected24:
        return corrected(half_to_float(weight16[i]), 10, -14, correction8[i] / 127.0f);
      case WeightFormat::kFP16Corrected32:
        return corrected(half_to_float(weight16[i]), 10, -14, correction16[i] / 32767.0f);
      case WeightFormat::kFP16:
        return half_to_float(weight16[i]);
      case WeightFormat::kFP32:
        break;
    }
    return weight32[i];
  }
  float momentum(size_t i) {
    if (format_.state == StateFormat::kFP32) return momentum32[i];
    const float q = momentum8[i];
    return q / (254.0f - std::fabs(q)) * scale(momentum_scale[i / kGroup]);
  }
  float root(size_t i) {
    if (format_.state == StateFormat::kFP32) return std::sqrt(variance32[i]);
    return static_cast<float>(variance8[i]) / 255.0f * scale(variance_scale[i / kGroup]);
  }
  float scale(uint16_t code) const {
    return format_.state == StateFormat::kFlashOptim ? half_to_float(code)
                                                     : std::bit_cast<float>(uint32_t{code} << 15);
  }

  /// Weights, states and gradients of many magnitudes; in some groups all zero, tiny, or one
  /// outlier.
  void fill(uint64_t seed, int exponent_spread) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> unit(-0.5f, 0.5f);
    for (size_t g = 0; g < groups_; ++g) {
      const float magnitude =
          std::exp2(-10.0f + static_cast<float>(exponent_spread) * unit(random));
      const auto kind = random() % 8;
      momentum_scale[g] = scale_code(magnitude * (1.0f + unit(random)));
      variance_scale[g] = scale_code(magnitude * (1.0f + unit(random)));
      for (size_t i = g * kGroup; i < size() && i < (g + 1) * kGroup; ++i) {
        const float w =
            normal(random) * std::exp2(static_cast<float>(exponent_spread) * 0.5f * unit(random));
        set_weight(i, random() % 37 == 0 ? 0.0f : w);
        float slope = normal(random) * magnitude;
        if (kind == 0) slope = 0;
        if (kind == 1 && i % kGroup != 7) slope *= 1e-6f;
        set_gradient(i, slope);
        const bool empty = kind == 0 || kind == 2;
        momentum8[i] = static_cast<int8_t>(empty ? 0 : static_cast<int>(random() % 255) - 127);
        variance8[i] = static_cast<uint8_t>(empty ? 0 : random() % 256);
        momentum32[i] = empty ? 0.0f : normal(random) * magnitude;
        variance32[i] = empty ? 0.0f : std::fabs(normal(random)) * magnitude * magnitude;
      }
    }
  }

  UpdateTensor tensor() {
    const bool codes = has_codes(format_.state);
    UpdateTensor t;
    t.weight_format = format_.weight;
    t.state_format = format_.state;
    t.gradient_dtype = format_.gradient;
    t.gradient = format_.gradient == DType::kBF16 ? static_cast<void*>(gradient16.data())
                                                  : gradient32.data();
    t.weight = format_.weight == WeightFormat::kFP32 ? static_cast<void*>(weight32.data())
                                                     : weight16.data();
    if (correction_bytes(format_.weight) == 1) t.correction = correction8.data();
    if (correction_bytes(format_.weight) == 2) t.correction = correction16.data();
    if (has_momentum(rule_.rule, rule_.hyper.beta1)) {
      t.momentum = codes ? static_cast<void*>(momentum8.data()) : momentum32.data();
      t.momentum_scale = codes ? momentum_scale.data() : nullptr;
    }
    if (has_variance(rule_.rule)) {
      t.variance = codes ? static_cast<void*>(variance8.data()) : variance32.data();
      t.variance_scale = codes ? variance_scale.data() : nullptr;
    }
    t.count = count_;
    t.first_element = first_element_;
    t.key = {.seed = 17, .tensor = 3};
    set_decay(t, rule_.rule, {.rate = 0.01}, 0.01);
    t.rejected_groups = &rejected_groups;
    return t;
  }

  bool operator==(const UpdateState& other) const { return same_bits(other); }

 private:
  static float split(uint16_t weight, int32_t low) {
    return std::bit_cast<float>((uint32_t{weight} << 16) + static_cast<uint32_t>(low));
  }
  /// weight + half a step of it * fraction.
  static float corrected(float weight, int mantissa_bits, int least_exponent, float fraction) {
    const int exponent =
        weight == 0 ? least_exponent : std::max(std::ilogb(weight), least_exponent);
    return weight + static_cast<float>(std::ldexp(double{fraction}, exponent - mantissa_bits - 1));
  }
  uint16_t scale_code(float magnitude) const {
    const uint32_t bits = std::bit_cast<uint32_t>(magnitude);
    if (format_.state != StateFormat::kFlashOptim) return static_cast<uint16_t>(bits >> 15);
    const float least = 0x1p-14f, most = 65504.0f;  // cut to fp16's normal values
    const uint32_t cut = std::bit_cast<uint32_t>(std::clamp(magnitude, least, most));
    return static_cast<uint16_t>((cut >> 13) - (112u << 10));
  }
  template <class T>
  static bool same(OffsetArray<T> a, OffsetArray<T> b, size_t count) {
    return count == 0 || std::memcmp(a.data(), b.data(), count * sizeof(T)) == 0;
  }
  bool same_bits(const UpdateState& o) const {
    return same(weight16, o.weight16, size()) && same(weight32, o.weight32, size()) &&
           same(correction8, o.correction8, size()) && same(correction16, o.correction16, size()) &&
           same(momentum8, o.momentum8, size()) && same(variance8, o.variance8, size()) &&
           same(momentum32, o.momentum32, size()) && same(variance32, o.variance32, size()) &&
           same(momentum_scale, o.momentum_scale, groups_) &&
           same(variance_scale, o.variance_scale, groups_);
  }

  RuleCase rule_;
  UpdateFormat format_;
  int64_t count_, first_element_;
  size_t groups_;

 public:
  int64_t rejected_groups = 0;
  OffsetArray<uint16_t> weight16;
  OffsetArray<float> weight32;
  OffsetArray<int8_t> correction8;
  OffsetArray<int16_t> correction16;
  OffsetArray<int8_t> momentum8;
  OffsetArray<uint8_t> variance8;
  OffsetArray<float> momentum32, variance32;
  OffsetArray<uint16_t> momentum_scale, variance_scale;
  OffsetArray<uint16_t> gradient16;
  OffsetArray<float> gradient32;
};

}  // namespace flashshard
