// See plain_update.h. FLASHSHARD_PLAIN_UPDATES names the table that this compilation defines.
// Nothing from a header with code may be used here: the linker could give this file's copy of an
// inline function, with its instructions, to the rest of the program.
#include <math.h>

#include <cstdint>
#include <cstring>

#include "launch/bench/plain_update.h"

// Before a loop: no iteration reads what another has written.
#ifdef __clang__
#define FLASHSHARD_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FLASHSHARD_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace flashshard::launch {
namespace {

constexpr int kSize = 32;  // elements that share a scale

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float from_bf16(uint16_t half) { return from_bits(static_cast<uint32_t>(half) << 16); }

/// Arrays of one tensor from an element on, and the constants of the step.
struct Group {
  Group(const UpdateTensor& t, int64_t i)
      : gradient(static_cast<const uint16_t*>(t.gradient) + i),
        weight(static_cast<uint16_t*>(t.weight) + i),
        momentum(static_cast<int8_t*>(t.momentum) + i),
        variance(static_cast<uint8_t*>(t.variance) + i),
        momentum_scale(t.momentum_scale + i / kSize),
        variance_scale(t.variance_scale + i / kSize) {}
  const uint16_t* gradient;
  uint16_t* weight;
  int8_t* momentum;
  uint8_t* variance;
  uint16_t *momentum_scale, *variance_scale;
};

/// How a group's largest magnitude is found.
enum class Maxima {
  kFloats,  // compared as they are, which no compiler vectorises without -ffast-math
  kBits,    // as bit patterns, whose order is that of the numbers
};

template <Maxima maxima>
inline uint32_t largest(const float* values) {
  if constexpr (maxima == Maxima::kFloats) {
    float most = 0;
    for (int i = 0; i < kSize; ++i) most = fabsf(values[i]) > most ? fabsf(values[i]) : most;
    return to_bits(most);
  }
  uint32_t most = 0;
  for (int i = 0; i < kSize; ++i) {
    const uint32_t bits = to_bits(values[i]) & 0x7fffffffU;
    most = bits > most ? bits : most;
  }
  return most;
}

// ---- V2 ----

inline uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352dU;
  x ^= x >> 15;
  x *= 0x846ca68bU;
  return x ^ (x >> 16);
}
uint64_t splitmix(uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}
inline uint16_t scale_code(uint32_t bits) {
  bits = bits < 0x21800000U ? 0x21800000U : bits;
  bits = bits > 0x5f000000U ? 0x5f000000U : bits;
  return static_cast<uint16_t>((bits + 0x7ff0U) >> 15);
}

// Group and factors are copies: stores of bytes could change what a reference refers to.
template <Maxima maxima, bool stochastic>
inline void v2_group(const Group g, int8_t* correction, const UpdateFactors f, float decay,
                     const uint8_t* noise) {
  float m[kSize], root[kSize];
  const float momentum_scale = from_bits(static_cast<uint32_t>(*g.momentum_scale) << 15);
  const float root_step =
      from_bits(static_cast<uint32_t>(*g.variance_scale) << 15) * (1.0f / 255.0f);
  FLASHSHARD_INDEPENDENT
  for (int i = 0; i < kSize; ++i) {
    const float gradient = from_bf16(g.gradient[i]) * f.gradient_factor;
    const float q = g.momentum[i];
    const float z = static_cast<float>(g.variance[i]) * root_step;
    m[i] = fmaf((q / (254.0f - fabsf(q))) * momentum_scale, f.beta1, gradient * f.one_minus_beta1);
    root[i] = sqrtf(fmaf(z * z, f.beta2, (gradient * gradient) * f.one_minus_beta2));
    float x = from_bits((static_cast<uint32_t>(g.weight[i]) << 16) +
                        (static_cast<uint32_t>(static_cast<int32_t>(correction[i])) << 8));
    const float denominator = fmaf(root[i], f.inverse_sqrt_correction, f.epsilon);
    x = fmaf(x, decay, -((m[i] * f.step_size) / denominator));
    const uint32_t bits = to_bits(x);
    const uint32_t rounded = bits + (stochastic ? noise[i] : 0x7fU + ((bits >> 8) & 1));
    g.weight[i] = static_cast<uint16_t>((rounded + 0x8000U) >> 16);
    correction[i] = static_cast<int8_t>(rounded >> 8);
  }
  *g.momentum_scale = scale_code(largest<maxima>(m));
  *g.variance_scale = scale_code(largest<maxima>(root));
  const float unit = from_bits(static_cast<uint32_t>(*g.momentum_scale) << 15);
  const float codes = 65280.0f / from_bits(static_cast<uint32_t>(*g.variance_scale) << 15);
  FLASHSHARD_INDEPENDENT
  for (int i = 0; i < kSize; ++i) {
    const int n = stochastic ? noise[i] : 128;
    const int fixed = static_cast<int>(nearbyintf((65024.0f * m[i]) / (unit + fabsf(m[i]))));
    g.momentum[i] = static_cast<int8_t>((fixed + (m[i] < 0 ? 255 - n : n)) >> 8);
    const float sum = fmaf(root[i], codes, 12582912.0f);  // whose last bit is worth 1
    const int code = (static_cast<int>(to_bits(sum) & 0x1ffffU) + n) >> 8;
    g.variance[i] = static_cast<uint8_t>(code == 0 && root[i] > 0 ? 1 : code);
  }
}

template <Maxima maxima, bool stochastic>
void v2(const UpdateTensor& t, const UpdateFactors& f, int64_t begin, int64_t end) {
  auto* correction = static_cast<int8_t*>(t.correction);
  uint32_t words[kSize / 4] = {};
  for (int64_t i = begin; i < end; i += kSize) {
    if (stochastic) {
      const auto first = static_cast<uint64_t>(t.first_element + i) / 4;
      const uint64_t hash = splitmix(splitmix(t.key.seed) ^ t.key.tensor);
      const auto key = static_cast<uint32_t>(splitmix(splitmix(hash ^ f.t) ^ (first >> 32)));
      for (uint32_t w = 0; w < kSize / 4; ++w) {
        words[w] = mix((static_cast<uint32_t>(first) + w) ^ key);
      }
    }
    uint8_t noise[kSize];
    std::memcpy(noise, words, sizeof(noise));
    v2_group<maxima, stochastic>(Group(t, i), correction + i, f, t.weight_decay_factor, noise);
  }
}

// ---- V1 ----

// fp16 numbers that are finite and not negative.
inline float from_half(uint16_t half) {
  return from_bits(static_cast<uint32_t>(half) << 13) * 0x1p112f;
}
inline uint16_t to_half(float value) {
  const uint32_t bits = to_bits(value);
  if (bits < 0x38800000U) return static_cast<uint16_t>(to_bits(value + 0.5f) & 0x7fffU);
  return static_cast<uint16_t>((bits + 0xfffU + ((bits >> 13) & 1) - (112U << 23)) >> 13);
}

/// The step's constants as FlashOptim has them: bias corrections divide in the loop.
struct V1Constants {
  float correction1, correction2, learning_rate;
};

template <Maxima maxima>
inline void v1_group(const Group g, int8_t* correction, const UpdateFactors f, const V1Constants c,
                     float decay) {
  float m[kSize], root[kSize];
  const float momentum_scale = from_half(*g.momentum_scale);
  const float root_scale = from_half(*g.variance_scale);
  FLASHSHARD_INDEPENDENT
  for (int i = 0; i < kSize; ++i) {
    const float gradient = from_bf16(g.gradient[i]) * f.gradient_factor;
    const float y = static_cast<float>(g.momentum[i]) / 127.0f;
    const float z = (static_cast<float>(g.variance[i]) / 255.0f) * root_scale;
    m[i] = ((y / (2.0f - fabsf(y))) * momentum_scale) * f.beta1 + gradient * f.one_minus_beta1;
    const float v = (z * z) * f.beta2 + (gradient * gradient) * f.one_minus_beta2;
    root[i] = sqrtf(v);
    // Half a step of the weight, which is a normal number here.
    const uint32_t exponent = (static_cast<uint32_t>(g.weight[i]) << 16) & 0x7f800000U;
    const float half_step = from_bits(exponent < 0x04000000U ? 0x04000000U : exponent) * 0x1p-8f;
    float x = from_bf16(g.weight[i]) + (static_cast<float>(correction[i]) / 127.0f) * half_step;
    x = x * decay;
    x = x - (c.learning_rate * (m[i] / c.correction1)) / (sqrtf(v / c.correction2) + f.epsilon);
    const uint32_t bits = to_bits(x);
    const uint32_t weight = (bits + 0x7fffU + ((bits >> 16) & 1)) & 0xffff0000U;
    const uint32_t new_exponent = weight & 0x7f800000U;
    const float inverse =
        from_bits(0x7f000000U - (new_exponent < 0x04000000U ? 0x04000000U : new_exponent)) * 0x1p8f;
    const float scaled = ((x - from_bits(weight)) * inverse) * 127.0f;
    const float half = from_bits((to_bits(scaled) & 0x80000000U) | 0x3f000000U);
    g.weight[i] = static_cast<uint16_t>(weight >> 16);
    correction[i] = static_cast<int8_t>(scaled + half);
  }
  const float most = from_bits(largest<maxima>(m)), most_root = from_bits(largest<maxima>(root));
  const float unit = most > 1e-12f ? most : 1e-12f;
  const float root_unit = most_root > 1e-12f ? most_root : 1e-12f;
  FLASHSHARD_INDEPENDENT
  for (int i = 0; i < kSize; ++i) {
    const float u = m[i] / unit;
    const float y = (2.0f * u) / (1.0f + fabsf(u));
    g.momentum[i] = static_cast<int8_t>(floorf(y * 127.0f + 0.5f));
    g.variance[i] = static_cast<uint8_t>(floorf((root[i] / root_unit) * 255.0f + 0.5f));
  }
  *g.momentum_scale = to_half(unit);
  *g.variance_scale = to_half(root_unit);
}

template <Maxima maxima>
void v1(const UpdateTensor& t, const UpdateFactors& f, int64_t begin, int64_t end) {
  auto* correction = static_cast<int8_t*>(t.correction);
  V1Constants constants;
  constants.correction1 = static_cast<float>(1 - pow(double{f.beta1}, static_cast<double>(f.t)));
  constants.correction2 = 1.0f / (f.inverse_sqrt_correction * f.inverse_sqrt_correction);
  constants.learning_rate = f.step_size * constants.correction1;
  for (int64_t i = begin; i < end; i += kSize) {
    v1_group<maxima>(Group(t, i), correction + i, f, constants, t.weight_decay_factor);
  }
}

// ---- fp32 state ----

void fp32(const UpdateTensor& t, const UpdateFactors& factors, int64_t begin, int64_t end) {
  const UpdateFactors f = factors;
  const auto* gradients = static_cast<const uint16_t*>(t.gradient);
  auto* weights = static_cast<uint16_t*>(t.weight);
  auto* corrections = static_cast<int16_t*>(t.correction);
  auto* momentum = static_cast<float*>(t.momentum);
  auto* variance = static_cast<float*>(t.variance);
  const float decay = t.weight_decay_factor;
  FLASHSHARD_INDEPENDENT
  for (int64_t i = begin; i < end; ++i) {
    const float gradient = from_bf16(gradients[i]) * f.gradient_factor;
    const float m = fmaf(momentum[i], f.beta1, gradient * f.one_minus_beta1);
    const float v = fmaf(variance[i], f.beta2, (gradient * gradient) * f.one_minus_beta2);
    float x = from_bits((static_cast<uint32_t>(weights[i]) << 16) +
                        static_cast<uint32_t>(static_cast<int32_t>(corrections[i])));
    const float denominator = fmaf(sqrtf(v), f.inverse_sqrt_correction, f.epsilon);
    x = fmaf(x, decay, -((m * f.step_size) / denominator));
    const uint32_t bits = to_bits(x);
    weights[i] = static_cast<uint16_t>((bits + 0x8000U) >> 16);
    corrections[i] = static_cast<int16_t>(bits & 0xffffU);
    momentum[i] = m;
    variance[i] = v;
  }
}

template <Maxima maxima>
constexpr PlainUpdates updates(const char* name) {
  return {FLASHSHARD_PLAIN_NAME, name, v2<maxima, true>, v2<maxima, false>, v1<maxima>, fp32};
}

}  // namespace

extern const PlainUpdates FLASHSHARD_PLAIN_UPDATES[2];
const PlainUpdates FLASHSHARD_PLAIN_UPDATES[2] = {updates<Maxima::kFloats>("plain_loop"),
                                                  updates<Maxima::kBits>("hinted_loop")};

}  // namespace flashshard::launch
