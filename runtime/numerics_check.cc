#include "runtime/numerics_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "runtime/agreement.h"
#include "runtime/parameter_groups.h"

namespace flashshard {
namespace {

constexpr double kMostSaturated = 0.01;   // of groups with codes
constexpr double kMostEdgeScales = 0.01;  // of scales
constexpr double kMostVanished = 0.01;    // of variances: codes of 0
constexpr double kMostLostUpdates = 0.5;  // of updates, rounded to nearest

/// A counter that is a share of `whole`, and how large that must be for a verdict. Tensors without
/// codes have no part in the first three: they must not hide what is wrong with the others.
struct Window {
  int64_t UpdateHealth::*whole;
  int64_t least;
  int64_t UpdateHealth::*part;
};
constexpr int64_t kLeastGroups = 256;
constexpr std::array<Window, 4> kWindows = {{
    {&UpdateHealth::coded_groups, kLeastGroups, &UpdateHealth::saturated_groups},
    {&UpdateHealth::sampled_scales, kLeastGroups, &UpdateHealth::edge_scales},
    {&UpdateHealth::sampled_variances, kLeastGroups* kGroup, &UpdateHealth::variance_codes_at_0},
    {&UpdateHealth::sampled_updates, kLeastGroups* kGroup, &UpdateHealth::lost_updates},
}};
constexpr int64_t kCopiedElements = int64_t{1} << 20;

/// Mantissa bits of the master that arithmetic can tell apart.
int mantissa_bits(WeightFormat format, Rounding rounding) {
  constexpr int kFP32 = 23, kBF16 = 7;
  switch (format) {
    case WeightFormat::kSplit24:
      return rounding == Rounding::kStochastic ? kFP32 : 15;
    case WeightFormat::kBF16:
      return rounding == Rounding::kStochastic ? kFP32 : kBF16;
    case WeightFormat::kCorrected24:
      return 14;  // 254 codes to a step of bf16
    case WeightFormat::kCorrected32:
      return 22;
    case WeightFormat::kFP16:
      return 10;
    case WeightFormat::kFP16Corrected24:
      return 17;
    default:
      return kFP32;
  }
}

Rounding rounding_of(const proto::RunConfig& config) {
  return config.optimizer().rounding() == proto::RoundingMode::NEAREST ? Rounding::kNearest
                                                                       : Rounding::kStochastic;
}

/// What tensors are updated by: the section's settings, or a group's.
struct Choice {
  proto::UpdateRuleKind::Value rule;
  proto::OptimizerState::Value state;
  int master_weight_bits;

  bool has_codes() const { return state == proto::OptimizerState::COMPANDED; }
  bool has_variance_codes() const {
    return has_codes() &&
           (rule == proto::UpdateRuleKind::ADAMW || rule == proto::UpdateRuleKind::ADAM);
  }
  /// What is left of a momentum after a step without gradient.
  double momentum_decay(const proto::OptimizerSection& optimizer) const {
    return rule == proto::UpdateRuleKind::LION ? optimizer.beta2() : optimizer.beta1();
  }
};

/// The section's, then every group's.
std::vector<Choice> choices_of(const proto::OptimizerSection& optimizer) {
  const Choice section{optimizer.rule(), optimizer.state(), optimizer.master_weight_bits()};
  std::vector<Choice> all = {section};
  for (const proto::ParameterGroup& group : optimizer.group()) {
    Choice& own = all.emplace_back(section);
    if (group.has_rule()) own.rule = group.rule();
    if (group.has_state()) own.state = group.state();
    if (group.has_master_weight_bits()) own.master_weight_bits = group.master_weight_bits();
  }
  return all;
}

/// Whether a step of the rule is about a learning rate long.
bool steps_by_learning_rate(proto::UpdateRuleKind::Value rule) {
  return rule != proto::UpdateRuleKind::SGD && rule != proto::UpdateRuleKind::SGDW;
}

/// Bits of the largest magnitude among a run of elements.
uint32_t largest_magnitude(Backend& backend, const Tensor& values) {
  std::vector<std::byte> host;
  uint32_t largest = 0;
  for (int64_t first = 0; first < values.elements(); first += kCopiedElements) {
    const int64_t count = std::min(kCopiedElements, values.elements() - first);
    const size_t width = size_of(values.dtype);
    host.resize(static_cast<size_t>(count) * width);
    backend.copy(host.data(), values.as<std::byte>() + static_cast<size_t>(first) * width,
                 host.size());
    backend.synchronize();
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits = 0;
      // Little-endian: bf16 is the upper half of an fp32 number.
      std::memcpy(reinterpret_cast<std::byte*>(&bits) + (sizeof(bits) - width),
                  host.data() + static_cast<size_t>(i) * width, width);
      largest = std::max(largest, bits & 0x7fffffffU);
    }
  }
  return largest;
}

double share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

}  // namespace

std::vector<NumericsFinding> harmful_settings(const proto::RunConfig& config) {
  const proto::OptimizerSection& optimizer = config.optimizer();
  if (config.model().dtype() == proto::WeightType::FP32) return {};
  const bool nearest = rounding_of(config) == Rounding::kNearest;
  const bool v1 = optimizer.state_format() == proto::StateFormatVersion::FLASHOPTIM_V1;
  std::vector<NumericsFinding> found;
  // A root falls by (1 - beta2) / 2 of itself a step: below half a code even at the largest, 255.
  const std::vector<Choice> choices = choices_of(optimizer);
  const bool codes = std::ranges::any_of(choices, &Choice::has_variance_codes);
  if (codes && nearest && !v1 && 255 * (1 - optimizer.beta2()) < 1) {
    found.push_back(
        {"beta2",
         fmt::format("optimizer.beta2 {} with optimizer.rounding NEAREST: 8-bit variances can rise "
                     "but never fall, so steps shrink. Hint: set optimizer.rounding STOCHASTIC",
                     optimizer.beta2())});
  }
  // A momentum of 1 code is half a code or more after a step, and rounded back.
  const bool stuck = std::ranges::any_of(choices, [&](const Choice& choice) {
    return choice.has_codes() && choice.momentum_decay(optimizer) >= 0.5;
  });
  if (stuck && nearest && !v1) {
    found.push_back(
        {"momentum",
         "optimizer.rounding NEAREST: 8-bit momenta of a few codes never fall, so elements without "
         "gradients beside others that have some go on moving. Hint: set optimizer.rounding "
         "STOCHASTIC"});
  }
  if (nearest && std::ranges::count(choices, 0, &Choice::master_weight_bits) > 0) {
    found.push_back(
        {"master_weight_bits",
         "optimizer.master_weight_bits 0 with optimizer.rounding NEAREST: a weight moves only by "
         "steps above 1/512 of itself. Hint: set optimizer.rounding STOCHASTIC, or 24 bits"});
  }
  return found;
}

double shortest_step(WeightFormat format, Rounding rounding, float magnitude) {
  const int exponent = magnitude == 0 ? -126 : std::max(std::ilogb(magnitude), -126);
  return std::ldexp(0.5, exponent - mantissa_bits(format, rounding));
}

std::optional<NumericsFinding> unmovable_weights(Communicator& communicator, Backend& backend,
                                                 const ShardedState& state,
                                                 const proto::RunConfig& config) {
  const ShardLayout& layout = state.layout();
  std::vector<int64_t> largest(static_cast<size_t>(layout.tensors()), 0);
  for (const ShardTensorView& view : state.shard_views()) {
    if (view.state != "weight") continue;
    const auto elements = static_cast<int64_t>(view.bytes.size() / size_of(view.dtype));
    largest[static_cast<size_t>(view.tensor)] =
        largest_magnitude(backend, Tensor(view.bytes.data(), view.dtype, {elements}));
  }
  communicator.all_reduce(largest, ReduceOp::kMax).wait("waiting for the largest weights");

  const auto settings = settings_of_tensors(config.optimizer(), layout.parameters());
  struct {
    int tensor = -1;
    float weight = 0;
    double least = 0, rate = 1;
  } worst;
  int tensors = 0;
  for (int t = 0; t < layout.tensors(); ++t) {
    const auto weight =
        std::bit_cast<float>(static_cast<uint32_t>(largest[static_cast<size_t>(t)]));
    const TensorSettings& own = settings[static_cast<size_t>(t)];
    const double rate = config.optimizer().learning_rate() * own.learning_rate_factor;
    const double least = shortest_step(state.weight_format(t), rounding_of(config), weight);
    // A factor of 0 means that nothing moves.
    if (rate >= least || rate == 0 || !steps_by_learning_rate(own.rule)) continue;
    ++tensors;
    if (least / rate > worst.least / worst.rate) worst = {t, weight, least, rate};
  }
  if (tensors == 0) return {};
  return NumericsFinding{
      "learning_rate",
      fmt::format("a step of optimizer.learning_rate {}{} cannot move the largest weights of {} "
                  "tensor(s); {} has weights up to {:.3g}, which move by {:.3g} or more. Hint: "
                  "raise the learning rate or optimizer.master_weight_bits, or set "
                  "optimizer.rounding STOCHASTIC",
                  config.optimizer().learning_rate(),
                  worst.rate == config.optimizer().learning_rate()
                      ? ""
                      : fmt::format(", with its group's factor {:.3g},", worst.rate),
                  tensors, layout.parameter(worst.tensor).name, worst.weight, worst.least)};
}

std::vector<NumericsFinding> unhealthy_counters(const UpdateHealth& health,
                                                const proto::RunConfig& config) {
  std::vector<NumericsFinding> findings;
  const double vanished = share(health.variance_codes_at_0, health.sampled_variances);
  if (vanished > kMostVanished) {
    findings.push_back(
        {"variance_codes_at_0",
         fmt::format("health.variance_codes_at_0: {:.1f} % of the sampled variances vanished "
                     "beside a gradient or momentum, so steps may be thousands of learning rates "
                     "long. Hint: set optimizer.state_format V2 or optimizer.state FP32",
                     100 * vanished)});
  }
  const double edge = share(health.edge_scales, health.sampled_scales);
  if (edge > kMostEdgeScales) {
    findings.push_back(
        {"edge_scales",
         fmt::format("health.edge_scales: {:.1f} % of the sampled scales are the format's "
                     "smallest, where moments lose bits or vanish. Hint: set "
                     "optimizer.state_format V2 or optimizer.state FP32, or look for gradients "
                     "that are nearly 0",
                     100 * edge)});
  }
  const double saturated = share(health.saturated_groups, health.coded_groups);
  if (saturated > kMostSaturated) {
    findings.push_back(
        {"saturated_groups",
         fmt::format("health.saturated_groups: {:.1f} % of the sampled groups with 8-bit states "
                     "have moments at the format's largest scale. Hint: set optimizer.clip_norm, "
                     "lower optimizer.learning_rate, or set optimizer.state_format V2",
                     100 * saturated)});
  }
  const double lost = share(health.lost_updates, health.sampled_updates);
  if (rounding_of(config) == Rounding::kNearest && lost > kMostLostUpdates) {
    findings.push_back(
        {"lost_updates",
         fmt::format("health.lost_updates: {:.1f} % of the sampled updates round to nothing, "
                     "every time. Hint: set optimizer.rounding STOCHASTIC or "
                     "optimizer.master_weight_bits 32, or raise optimizer.learning_rate",
                     100 * lost)});
  }
  return findings;
}

void NumericsCheck::before_first_step(Communicator& communicator, Backend& backend,
                                      const ShardedState& state) {
  if (config_.numerics().check() == proto::NumericsReaction::OFF) return;
  for (const NumericsFinding& finding : harmful_settings(config_)) report(finding);
  if (const auto finding = unmovable_weights(communicator, backend, state, config_)) {
    report(*finding);
  }
}

void NumericsCheck::after_update(const UpdateHealth& health) {
  if (config_.numerics().check() == proto::NumericsReaction::OFF) return;
  for (const auto& [name, counter] : kHealthCounters) window_.*counter += health.*counter;
  for (const auto& finding : unhealthy_counters(take_full_windows(), config_)) report(finding);
}

UpdateHealth NumericsCheck::take_full_windows() {
  UpdateHealth full;
  for (const Window& window : kWindows) {
    if (window_.*window.whole < window.least) continue;
    full.*window.whole = std::exchange(window_.*window.whole, 0);
    full.*window.part = std::exchange(window_.*window.part, 0);
  }
  return full;
}

void NumericsCheck::report(const NumericsFinding& finding) {
  if (!reported_.insert(finding.kind).second) return;
  if (config_.numerics().check() == proto::NumericsReaction::REFUSE) {
    throw AgreedError(ExitCode::kNumerics, finding.text);
  }
  warn_(finding.text);
}

}  // namespace flashshard
