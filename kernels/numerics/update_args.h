// Arguments of the codec and update kernels: tables of pointers and flags (docs/numerics.md has the
// formats).
#pragma once

#include <array>
#include <cstdint>
#include <utility>

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
  // FlashOptim's: error correction in 1/127 or 1/32767 of half a step of the weight. They round to
  // nearest, whatever a step's rounding is.
  kCorrected24,      // bf16 weight + int8 correction
  kCorrected32,      // bf16 weight + int16 correction
  kFP16Corrected24,  // fp16 weight + int8 correction
  kFP16Corrected32,  // fp16 weight + int16 correction
  kFP16,             // fp16 alone
};
constexpr int correction_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kSplit24:
    case WeightFormat::kCorrected24:
    case WeightFormat::kFP16Corrected24:
      return 1;
    case WeightFormat::kSplit32:
    case WeightFormat::kCorrected32:
    case WeightFormat::kFP16Corrected32:
      return 2;
    default:
      return 0;
  }
}
constexpr int weight_bytes(WeightFormat format) { return format == WeightFormat::kFP32 ? 4 : 2; }

/// How momentum and variance are stored.
enum class StateFormat : uint8_t {
  kCompanded,   // V2: 8-bit codes and one 8+8-bit scale per group of 32
  kFP32,        // no codes
  kFlashOptim,  // FLASHOPTIM_V1: 8-bit codes and one fp16 scale per group of 32
};
constexpr bool has_codes(StateFormat format) { return format != StateFormat::kFP32; }

/// How a weight changes. kAdam and kSGD add their decay to the gradient, the others shrink the
/// weight.
enum class Rule : uint8_t { kAdamW, kAdam, kLion, kSGD, kSGDW };
constexpr bool has_variance(Rule rule) { return rule == Rule::kAdamW || rule == Rule::kAdam; }
constexpr bool has_coupled_decay(Rule rule) { return rule == Rule::kAdam || rule == Rule::kSGD; }

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

/// Which of the two moments of a rule; the variance's codes are of its square root.
enum class Moment : uint8_t { kMomentum, kVariance };

/// values (fp32) -> codes and scales. A group with a value that has no scale (momentum or sqrt(v)
/// above 2^63 in V2, from 65520 up in V1, NaN) or a negative variance is not written and is
/// counted.
struct EncodeMoment {
  StateFormat format = StateFormat::kCompanded;  // one with codes
  Moment moment = Moment::kMomentum;
  const float* values = nullptr;
  void* codes = nullptr;       // int8, or uint8 for the variance
  uint16_t* scales = nullptr;  // one per group
  int64_t count = 0;
  int64_t* rejected_groups = nullptr;  // host memory, added into
};
/// codes and scales -> values (fp32).
struct DecodeMoment {
  StateFormat format = StateFormat::kCompanded;
  Moment moment = Moment::kMomentum;
  float* values = nullptr;
  const void* codes = nullptr;
  const uint16_t* scales = nullptr;
  int64_t count = 0;
};

/// What updates did to the groups that numerics/health.h picks, one in 4096.
struct UpdateHealth {
  int64_t sampled_groups = 0;       // looked at; all others count over these
  int64_t coded_groups = 0;         // of these, with 8-bit states, updated
  int64_t saturated_groups = 0;     // a moment's scale is the format's largest
  int64_t sampled_scales = 0;       // of coded groups: one or two each
  int64_t edge_scales = 0;          // scales at the format's smallest beside values that are not 0
  int64_t sampled_variances = 0;    // elements with an 8-bit variance
  int64_t variance_codes_at_1 = 0;  // elements with the smallest code that is not 0
  int64_t variance_codes_at_0 = 0;  // elements with code 0 whose gradient or momentum is not 0
  int64_t sampled_updates = 0;      // elements that were to change
  int64_t lost_updates = 0;         // of these, weight and correction kept every bit
};
/// Every counter by its name in metrics.jsonl.
constexpr std::array<std::pair<const char*, int64_t UpdateHealth::*>, 10> kHealthCounters = {
    {{"sampled_groups", &UpdateHealth::sampled_groups},
     {"coded_groups", &UpdateHealth::coded_groups},
     {"saturated_groups", &UpdateHealth::saturated_groups},
     {"sampled_scales", &UpdateHealth::sampled_scales},
     {"edge_scales", &UpdateHealth::edge_scales},
     {"sampled_variances", &UpdateHealth::sampled_variances},
     {"variance_codes_at_1", &UpdateHealth::variance_codes_at_1},
     {"variance_codes_at_0", &UpdateHealth::variance_codes_at_0},
     {"sampled_updates", &UpdateHealth::sampled_updates},
     {"lost_updates", &UpdateHealth::lost_updates}}};

/// One contiguous run of whole groups of one parameter (only the parameter's last group may be
/// short). A state that the rule does not have is null.
struct UpdateTensor {
  WeightFormat weight_format = WeightFormat::kSplit24;
  StateFormat state_format = StateFormat::kCompanded;
  DType gradient_dtype = DType::kBF16;
  const void* gradient = nullptr;
  void* weight = nullptr;  // bf16, fp16, or float with kFP32; updated in place
  void* correction = nullptr;
  void* momentum = nullptr;            // int8 codes, or float
  uint16_t* momentum_scale = nullptr;  // one per group; null with fp32 state
  void* variance = nullptr;            // uint8 codes, or float
  uint16_t* variance_scale = nullptr;
  int64_t count = 0;          // elements
  int64_t first_element = 0;  // index of element 0 in its whole tensor, a multiple of 32
  RoundingKey key;
  float weight_decay_factor = 1.0f;  // 1 - lr*wd of this tensor (1: no decay)
  float coupled_decay = 0.0f;        // of kAdam and kSGD: times the weight, added to the gradient
  /// Groups left wholly as they were, because a new weight was outside its format's domain (see
  /// EncodeMaster) or a new moment too large for its scale (EncodeMoment; fp32 state: above 2^63):
  /// added into, if given. Tensors may share a counter.
  int64_t* rejected_groups = nullptr;
  /// Host memory, added into, if given; tensors may share it.
  UpdateHealth* health = nullptr;
};

/// What a user sets of a rule. AdamW and Adam use the betas and epsilon; Lion the betas (first of
/// the step's direction, then of the momentum); SGD and SGDW beta1 as their momentum, dampening and
/// Nesterov's look-ahead.
struct RuleHyperparameters {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double dampening = 0;
  bool nesterov = false;
};
/// SGD without momentum keeps no state.
constexpr bool has_momentum(Rule rule, double beta1) {
  return (rule != Rule::kSGD && rule != Rule::kSGDW) || static_cast<float>(beta1) > 0;
}

/// Constants of one step, computed on the host in double and rounded once (make_update_factors).
struct UpdateFactors {
  Rule rule = Rule::kAdamW;
  bool nesterov = false;
  float beta1 = 0, one_minus_beta1 = 0;  // of SGD: 1 - dampening
  float beta2 = 0, one_minus_beta2 = 0;
  float step_size = 0;                // the learning rate; of Adam and AdamW lr / (1 - beta1^t)
  float inverse_sqrt_correction = 0;  // 1 / sqrt(1 - beta2^t)
  float epsilon = 0;
  float gradient_factor = 1;  // clip coefficient / global token count
  Rounding rounding = Rounding::kStochastic;
  uint64_t t = 0;  // applied updates, this one included: part of the rounding key
};
/// Throws Error(kUsage) for values that no step of the rule can use.
UpdateFactors make_update_factors(Rule rule, const RuleHyperparameters& hyper, double learning_rate,
                                  double gradient_factor, Rounding rounding, uint64_t t);

/// How much of a weight a step takes away.
struct WeightDecay {
  double rate = 0;
  /// The learning rate at which `rate` holds as it stands (decouple_lr: the factor is 1 - rate * lr
  /// / peak); 0: the factor is 1 - lr * rate.
  double peak_learning_rate = 0;
};
/// Sets the tensor's weight_decay_factor or coupled_decay, as the rule has it. Throws Error(kUsage)
/// for a factor that is not in (0, 1].
void set_decay(UpdateTensor& tensor, Rule rule, const WeightDecay& decay, double learning_rate);

}  // namespace flashshard
