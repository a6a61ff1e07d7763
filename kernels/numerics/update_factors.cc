// Constants of a step: bias corrections and their combinations, in fp64 on the host and rounded
// once.
#include <cmath>
#include <string>

#include "kernels/error.h"
#include "kernels/numerics/update_args.h"

namespace flashshard {
namespace {

const char* name_of(Rule rule) {
  switch (rule) {
    case Rule::kAdamW:
      return "AdamW";
    case Rule::kAdam:
      return "Adam";
    case Rule::kLion:
      return "Lion";
    case Rule::kSGD:
      return "SGD";
    case Rule::kSGDW:
      return "SGDW";
  }
  return "";
}

void require(bool holds, Rule rule, const char* what, double value) {
  if (!holds) {
    throw Error(ExitCode::kUsage,
                std::string(name_of(rule)) + ": " + what + ", not " + std::to_string(value));
  }
}

// The formulas compute in fp32: what is infinite there poisons every weight of a step, and a beta
// that is 1 there never lets its average forget.
bool is_fp32(double value) { return std::isfinite(static_cast<float>(value)); }
bool is_fraction(double beta) { return beta >= 0 && static_cast<float>(beta) < 1; }

void require_hyperparameters(Rule rule, const RuleHyperparameters& hyper) {
  const bool sgd = rule == Rule::kSGD || rule == Rule::kSGDW;
  require(is_fraction(hyper.beta1), rule,
          sgd ? "momentum must lie in [0, 1) in fp32" : "beta1 must lie in [0, 1) in fp32",
          hyper.beta1);
  if (sgd) {
    require(hyper.dampening >= 0 && hyper.dampening <= 1, rule, "dampening must lie in [0, 1]",
            hyper.dampening);
    require(!hyper.nesterov || (hyper.beta1 > 0 && hyper.dampening == 0), rule,
            "Nesterov's step needs momentum above 0 and dampening 0", hyper.dampening);
    return;
  }
  require(is_fraction(hyper.beta2), rule, "beta2 must lie in [0, 1) in fp32", hyper.beta2);
  if (has_variance(rule)) {
    require(static_cast<float>(hyper.epsilon) > 0 && is_fp32(hyper.epsilon), rule,
            "epsilon must be positive and finite in fp32", hyper.epsilon);
  }
}

}  // namespace

UpdateFactors make_update_factors(Rule rule, const RuleHyperparameters& hyper, double learning_rate,
                                  double gradient_factor, Rounding rounding, uint64_t t) {
  require_hyperparameters(rule, hyper);
  require(learning_rate >= 0 && is_fp32(learning_rate), rule,
          "the learning rate must be 0 or more, and an fp32 number", learning_rate);
  require(gradient_factor >= 0 && is_fp32(gradient_factor), rule,
          "the gradient factor must be 0 or more, and an fp32 number", gradient_factor);
  require(t >= 1, rule, "updates are counted from 1", static_cast<double>(t));
  UpdateFactors factors;
  factors.rule = rule;
  factors.beta1 = static_cast<float>(hyper.beta1);
  factors.one_minus_beta1 = static_cast<float>(1.0 - hyper.beta1);
  factors.step_size = static_cast<float>(learning_rate);
  factors.gradient_factor = static_cast<float>(gradient_factor);
  factors.rounding = rounding;
  factors.t = t;
  if (rule == Rule::kSGD || rule == Rule::kSGDW) {
    factors.nesterov = hyper.nesterov;
    factors.one_minus_beta1 = static_cast<float>(1.0 - hyper.dampening);
    return factors;
  }
  factors.beta2 = static_cast<float>(hyper.beta2);
  factors.one_minus_beta2 = static_cast<float>(1.0 - hyper.beta2);
  if (has_variance(rule)) {
    const auto steps = static_cast<double>(t);
    const double correction1 = 1.0 - std::pow(hyper.beta1, steps);
    const double correction2 = 1.0 - std::pow(hyper.beta2, steps);
    const double step_size = learning_rate / correction1;
    require(is_fp32(step_size), rule, "the learning rate over 1 - beta1^t must be an fp32 number",
            step_size);
    factors.step_size = static_cast<float>(step_size);
    factors.inverse_sqrt_correction = static_cast<float>(1.0 / std::sqrt(correction2));
    factors.epsilon = static_cast<float>(hyper.epsilon);
  }
  return factors;
}

void set_decay(UpdateTensor& tensor, Rule rule, const WeightDecay& decay, double learning_rate) {
  require(decay.rate >= 0 && is_fp32(decay.rate), rule,
          "the weight decay must be 0 or more, and an fp32 number", decay.rate);
  require(decay.peak_learning_rate >= 0 && std::isfinite(decay.peak_learning_rate), rule,
          "the peak learning rate must be 0 (none) or more", decay.peak_learning_rate);
  if (has_coupled_decay(rule)) {
    tensor.coupled_decay = static_cast<float>(decay.rate);
    return;
  }
  const double rate =
      decay.peak_learning_rate > 0 ? learning_rate / decay.peak_learning_rate : learning_rate;
  const double factor = 1.0 - rate * decay.rate;
  require(factor > 0 && factor <= 1, rule, "a step must keep a part of the weight in (0, 1]",
          factor);
  tensor.weight_decay_factor = static_cast<float>(factor);
}

}  // namespace flashshard
