// Constants of an AdamW step: bias corrections and their combinations, in fp64 on the host and
// rounded once.
#include <cmath>
#include <string>

#include "kernels/error.h"
#include "kernels/numerics/update_args.h"

namespace flashshard {
namespace {

void require(bool holds, const char* what, double value) {
  if (!holds)
    throw Error(ExitCode::kUsage, std::string("AdamW: ") + what + ", not " + std::to_string(value));
}

}  // namespace

AdamWFactors make_adamw_factors(const AdamWHyperparameters& hyper, double learning_rate,
                                double gradient_factor, Rounding rounding, uint64_t t) {
  require(hyper.beta1 >= 0 && hyper.beta1 < 1, "beta1 must lie in [0, 1)", hyper.beta1);
  require(hyper.beta2 >= 0 && hyper.beta2 < 1, "beta2 must lie in [0, 1)", hyper.beta2);
  require(static_cast<float>(hyper.epsilon) > 0 && std::isfinite(hyper.epsilon),
          "epsilon must be positive in fp32", hyper.epsilon);
  require(learning_rate >= 0 && std::isfinite(learning_rate), "the learning rate must be 0 or more",
          learning_rate);
  require(gradient_factor >= 0 && std::isfinite(gradient_factor),
          "the gradient factor must be 0 or more", gradient_factor);
  require(t >= 1, "updates are counted from 1", static_cast<double>(t));
  const double steps = static_cast<double>(t);
  const double correction1 = 1.0 - std::pow(hyper.beta1, steps);
  const double correction2 = 1.0 - std::pow(hyper.beta2, steps);
  AdamWFactors factors;
  factors.beta1 = static_cast<float>(hyper.beta1);
  factors.one_minus_beta1 = static_cast<float>(1.0 - hyper.beta1);
  factors.beta2 = static_cast<float>(hyper.beta2);
  factors.one_minus_beta2 = static_cast<float>(1.0 - hyper.beta2);
  factors.step_size = static_cast<float>(learning_rate / correction1);
  factors.inverse_sqrt_correction = static_cast<float>(1.0 / std::sqrt(correction2));
  factors.epsilon = static_cast<float>(hyper.epsilon);
  factors.gradient_factor = static_cast<float>(gradient_factor);
  factors.rounding = rounding;
  factors.t = t;
  return factors;
}

}  // namespace flashshard
