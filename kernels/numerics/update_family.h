// What a rule does with the gradient, decay aside: the update kernels are chosen by it.
#pragma once

#include <cstdint>

#include "kernels/numerics/update_args.h"

namespace flashshard {

enum class Family : uint8_t {
  kAdam,      // momentum and variance
  kLion,      // momentum; its step has a sign alone
  kMomentum,  // SGD with momentum
  kNesterov,  // SGD with momentum, looking ahead
  kPlain,     // SGD without
};
constexpr bool has_momentum(Family family) { return family != Family::kPlain; }
constexpr bool has_variance(Family family) { return family == Family::kAdam; }
/// Whether the step goes along a direction of its own; otherwise along the new momentum.
constexpr bool has_direction(Family family) {
  return family != Family::kAdam && family != Family::kMomentum;
}

constexpr Family family_of(const UpdateFactors& factors) {
  if (has_variance(factors.rule)) return Family::kAdam;
  if (factors.rule == Rule::kLion) return Family::kLion;
  if (factors.beta1 == 0) return Family::kPlain;
  return factors.nesterov ? Family::kNesterov : Family::kMomentum;
}

}  // namespace flashshard
