// Arguments of the codec and update kernels: tables of pointers and flags (docs/numerics.md has the
// formats).
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace flashshard {

constexpr int64_t kGroup = 32;  // elements that share a scale; no shard boundary ever cuts one

/// The scale of a fresh, all-zero group: the format's smallest, 2^-60.
constexpr uint16_t kFreshScale = 0x4300;

/// How a parameter's master weight is stored.
enum class WeightFormat : uint8_t {
  kSplit24,  // bf16 weight + int8 correction: 24 bits of the fp32 value
  kSplit32,  // bf16 weight + int16 correction: the fp32 value exactly
  kBF16,     // bf16 alone
  kFP32,     // fp32 weight, no correction (model.dtype: FP32)
};
constexpr int correction_bytes(WeightFormat format) {
  return format == WeightFormat::kSplit24 ? 1 : format == WeightFormat::kSplit32 ? 2 : 0;
}

/// How momentum and variance are stored.
enum class StateFormat : uint8_t {
  kCompanded,  // 8-bit codes and one 16-bit scale per group of 32
  kFP32,
};

enum class Rounding : uint8_t { kNearest, kStochastic };

/// Key of the rounding hash: low 32 bits of splitmix64 chained over (seed, tensor, t, element >>
/// 34); see numerics/rounding.h. The kernels derive it; callers give the ingredients.
struct RoundingKey {
  uint64_t seed = 0;
  uint64_t tensor = 0;
};

/// values (fp32) -> weight + correction, rounded to nearest. A group of 32 with a value outside the
/// format's domain (magnitude bits of 0x7f7f7f00 and more; with kBF16 above 0x7f7f0000; NaN
/// included) is not written and is counted.
struct EncodeMaster {
  WeightFormat format = WeightFormat::kSplit24;
  const float* values = nullptr;
  void* weight = nullptr;      // bf16, or float with kFP32
  void* correction = nullptr;  // int8, int16, or null
  int64_t count = 0;
  int64_t* rejected_groups = nullptr;  // host memory, added into
};
/// weight + correction -> values (fp32).
struct DecodeMaster {
  WeightFormat format = WeightFormat::kSplit24;
  float* values = nullptr;
  const void* weight = nullptr;
  const void* correction = nullptr;
  int64_t count = 0;
};

/// One contiguous run of whole groups of one parameter (only the parameter's last group may be
/// short).
struct AdamWTensor {
  WeightFormat weight_format = WeightFormat::kSplit24;
  StateFormat state_format = StateFormat::kCompanded;
  DType gradient_dtype = DType::kBF16;
  const void* gradient = nullptr;
  void* weight = nullptr;  // bf16, or float with kFP32; updated in place
  void* correction = nullptr;
  void* momentum = nullptr;            // int8 codes, or float
  uint16_t* momentum_scale = nullptr;  // one per group; null with kFP32 state
  void* variance = nullptr;            // uint8 codes, or float
  uint16_t* variance_scale = nullptr;
  int64_t count = 0;          // elements
  int64_t first_element = 0;  // index of element 0 in its whole tensor, a multiple of 32
  RoundingKey key;
  float weight_decay_factor = 1.0f;  // 1 - lr*wd of this tensor (1: no decay)
  /// Groups left wholly as they were, because a new weight was outside its format's domain (see
  /// EncodeMaster) or a new moment not below 2^63: added into, if given. Tensors may share a
  /// counter.
  int64_t* rejected_groups = nullptr;
};

/// Constants of one step, computed on the host in double and rounded once (make_adamw_factors).
struct AdamWFactors {
  float beta1 = 0, one_minus_beta1 = 0;
  float beta2 = 0, one_minus_beta2 = 0;
  float step_size = 0;                // lr / (1 - beta1^t)
  float inverse_sqrt_correction = 0;  // 1 / sqrt(1 - beta2^t)
  float epsilon = 0;
  float gradient_factor = 1;  // clip coefficient / global token count
  Rounding rounding = Rounding::kStochastic;
  uint64_t t = 0;  // applied updates, this one included: part of the rounding key
};

struct AdamWHyperparameters {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
};
AdamWFactors make_adamw_factors(const AdamWHyperparameters& hyper, double learning_rate,
                                double gradient_factor, Rounding rounding, uint64_t t);

}  // namespace flashshard
