// Owned memory of one parameter's weight, gradient and state, with random contents, for the tests
// of the update.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/formats.h"
#include "kernels/numerics/update_args.h"

namespace flashshard {

/// One combination of formats.
struct AdamWFormat {
  WeightFormat weight = WeightFormat::kSplit24;
  StateFormat state = StateFormat::kCompanded;
  DType gradient = DType::kBF16;
  Rounding rounding = Rounding::kStochastic;
};

inline std::vector<AdamWFormat> all_adamw_formats() {
  std::vector<AdamWFormat> formats;
  for (auto weight :
       {WeightFormat::kSplit24, WeightFormat::kSplit32, WeightFormat::kBF16, WeightFormat::kFP32})
    for (auto state : {StateFormat::kCompanded, StateFormat::kFP32})
      for (auto gradient : {DType::kBF16, DType::kFP32})
        for (auto rounding : {Rounding::kNearest, Rounding::kStochastic})
          formats.push_back({weight, state, gradient, rounding});
  return formats;
}

inline std::string name_of(const AdamWFormat& f) {
  const char* weights[] = {"Split24", "Split32", "BF16", "FP32"};
  return std::string(weights[static_cast<int>(f.weight)]) +
         (f.state == StateFormat::kCompanded ? "Companded" : "FP32State") +
         (f.gradient == DType::kBF16 ? "BF16Gradient" : "FP32Gradient") +
         (f.rounding == Rounding::kNearest ? "Nearest" : "Stochastic");
}
inline void PrintTo(const AdamWFormat& f, std::ostream* out) { *out << name_of(f); }

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

class AdamWState {
 public:
  AdamWState(const AdamWFormat& format, int64_t count, int64_t first_element = 0, size_t offset = 0)
      : format_(format),
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
    for (size_t g = 0; g < groups_; ++g)
      momentum_scale[g] = variance_scale[g] = numerics::kSmallestScaleCode;
  }

  size_t size() const { return static_cast<size_t>(count_); }
  size_t groups() const { return groups_; }

  void set_weight(size_t i, float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    weight32[i] = value;
    weight16[i] = static_cast<uint16_t>((bits + 0x8000u) >> 16);
    correction8[i] = static_cast<int8_t>(bits >> 8);
    correction16[i] = static_cast<int16_t>(bits);
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
  static float scale(uint16_t code) { return std::bit_cast<float>(uint32_t{code} << 15); }

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

  AdamWTensor tensor() {
    const bool codes = format_.state == StateFormat::kCompanded;
    AdamWTensor t;
    t.weight_format = format_.weight;
    t.state_format = format_.state;
    t.gradient_dtype = format_.gradient;
    t.gradient = format_.gradient == DType::kBF16 ? static_cast<void*>(gradient16.data())
                                                  : gradient32.data();
    t.weight = format_.weight == WeightFormat::kFP32 ? static_cast<void*>(weight32.data())
                                                     : weight16.data();
    if (format_.weight == WeightFormat::kSplit24) t.correction = correction8.data();
    if (format_.weight == WeightFormat::kSplit32) t.correction = correction16.data();
    t.momentum = codes ? static_cast<void*>(momentum8.data()) : momentum32.data();
    t.variance = codes ? static_cast<void*>(variance8.data()) : variance32.data();
    t.momentum_scale = codes ? momentum_scale.data() : nullptr;
    t.variance_scale = codes ? variance_scale.data() : nullptr;
    t.count = count_;
    t.first_element = first_element_;
    t.key = {.seed = 17, .tensor = 3};
    t.weight_decay_factor = 0.9999f;
    t.rejected_groups = &rejected_groups;
    return t;
  }

  bool operator==(const AdamWState& other) const { return same_bits(other); }

 private:
  static float split(uint16_t weight, int32_t low) {
    return std::bit_cast<float>((uint32_t{weight} << 16) + static_cast<uint32_t>(low));
  }
  static uint16_t scale_code(float magnitude) {
    return static_cast<uint16_t>(std::bit_cast<uint32_t>(magnitude) >> 15);
  }
  template <class T>
  static bool same(OffsetArray<T> a, OffsetArray<T> b, size_t count) {
    return count == 0 || std::memcmp(a.data(), b.data(), count * sizeof(T)) == 0;
  }
  bool same_bits(const AdamWState& o) const {
    return same(weight16, o.weight16, size()) && same(weight32, o.weight32, size()) &&
           same(correction8, o.correction8, size()) && same(correction16, o.correction16, size()) &&
           same(momentum8, o.momentum8, size()) && same(variance8, o.variance8, size()) &&
           same(momentum32, o.momentum32, size()) && same(variance32, o.variance32, size()) &&
           same(momentum_scale, o.momentum_scale, groups_) &&
           same(variance_scale, o.variance_scale, groups_);
  }

  AdamWFormat format_;
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
