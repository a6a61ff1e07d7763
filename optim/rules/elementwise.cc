// The elementwise rules on sharded, companded state: AdamW (arXiv 1711.05101), Adam (1412.6980),
// Lion (2302.06675), SGD and SGDW; their formulas stand in kernels/numerics/. Matrices and
// embeddings have the configured formats; vectors (norm gains, biases), a fraction of a percent of
// a model, keep fp32 state and a 32-bit master. A parameter group may have its tensors otherwise.
#include <array>
#include <map>
#include <unordered_map>
#include <utility>

#include "kernels/error.h"
#include "optim/update_rule.h"

namespace flashshard {
namespace {

class ElementwiseRule final : public UpdateRule {
 public:
  ElementwiseRule(Backend& backend, const ElementwiseOptions& options)
      : backend_(backend), options_(options) {
    for (const ParameterGroup& group : options_.groups) {
      for (const std::string& name : group.parameters) {
        if (!group_of_.emplace(name, &group).second) {
          throw Error(ExitCode::kInternal, "a parameter stands in two groups", name);
        }
      }
    }
  }

  std::string_view name() const override {
    constexpr std::array<std::string_view, 5> names = {"ADAMW", "ADAM", "LION", "SGD", "SGDW"};
    return names[static_cast<size_t>(options_.rule)];
  }

  WeightFormat weight_format(const ParameterSpec& parameter) const override {
    return settings_of(parameter).weight_format;
  }

  std::vector<StateTensorSpec> states(const ParameterSpec& parameter) const override {
    const Settings settings = settings_of(parameter);
    std::vector<StateTensorSpec> specs;
    add_correction(settings.weight_format, specs);
    if (has_momentum(settings.rule, options_.hyper.beta1)) {
      add_moment("momentum", DType::kINT8, MemoryClass::kMomentum, settings.state_format, specs);
    }
    if (has_variance(settings.rule)) {
      add_moment("variance", DType::kUINT8, MemoryClass::kVariance, settings.state_format, specs);
    }
    return specs;
  }

  int scalars(const ParameterSpec&) const override { return 0; }
  void accumulate(const ShardSlice&, const StepFactors&, std::span<double>) override {}

  // Tensors of one rule and one rate share the constants of a step, and a call.
  void apply(std::span<const ShardSlice> slices, const StepFactors& factors,
             std::span<const std::span<const double>>) override {
    std::map<std::pair<Rule, double>, std::vector<UpdateTensor>> calls;
    for (const ShardSlice& slice : slices) {
      const Settings settings = settings_of(*slice.parameter);
      calls[{settings.rule, settings.learning_rate_factor}].push_back(
          arguments(slice, settings, factors));
    }
    for (const auto& [call, tensors] : calls) {
      const auto& [rule, learning_rate_factor] = call;
      UpdateFactors update =
          make_update_factors(rule, options_.hyper, rate_of(factors) * learning_rate_factor,
                              factors.gradient_factor, options_.rounding, factors.t);
      if (!factors.first) update.beta1 = update.beta2 = 1;  // the moments have decayed
      backend_.update(tensors, update);
    }
  }

 private:
  /// A step of no length keeps the value of every weight that is stored.
  static double rate_of(const StepFactors& factors) {
    return factors.last ? factors.learning_rate : 0;
  }

  /// How one parameter changes and is stored.
  struct Settings {
    Rule rule;
    double learning_rate_factor = 1;
    WeightDecay weight_decay;  // rate 0: none
    WeightFormat weight_format;
    StateFormat state_format;
  };

  Settings settings_of(const ParameterSpec& parameter) const {
    const bool vector = parameter.role == ParameterRole::kVector;
    Settings settings{
        .rule = options_.rule,
        .weight_decay = options_.weight_decay,
        .weight_format = vector ? options_.vector_weight_format : options_.weight_format,
        .state_format = vector ? StateFormat::kFP32 : options_.state_format};
    if (!parameter.decay) settings.weight_decay.rate = 0;
    const auto found = group_of_.find(parameter.name);
    if (found == group_of_.end()) return settings;
    const ParameterGroup& group = *found->second;
    settings.rule = group.rule.value_or(settings.rule);
    settings.learning_rate_factor = group.learning_rate_factor;
    settings.weight_decay.rate = group.weight_decay.value_or(settings.weight_decay.rate);
    // A rate of 0 has no peak to measure the decay by, and takes nothing away.
    if (group.learning_rate_factor == 0) settings.weight_decay = {};
    settings.weight_decay.peak_learning_rate *= group.learning_rate_factor;
    settings.weight_format = group.weight_format.value_or(settings.weight_format);
    settings.state_format = group.state_format.value_or(settings.state_format);
    return settings;
  }

  // The two formats' corrections have different names: a reader of one never takes the other for
  // it.
  static void add_correction(WeightFormat format, std::vector<StateTensorSpec>& specs) {
    if (correction_bytes(format) == 0) return;
    const bool split = format == WeightFormat::kSplit24 || format == WeightFormat::kSplit32;
    const DType dtype = correction_bytes(format) == 1 ? DType::kINT8 : DType::kINT16;
    specs.push_back(
        {split ? "correction" : "error_correction", dtype, 1, MemoryClass::kCorrection, 0});
  }

  static void add_moment(const std::string& name, DType codes, MemoryClass memory_class,
                         StateFormat format, std::vector<StateTensorSpec>& specs) {
    specs.push_back({name, has_codes(format) ? codes : DType::kFP32, 1, memory_class, 0});
    if (format == StateFormat::kCompanded) {
      specs.push_back({name + "_scale", DType::kUINT16, kGroup, MemoryClass::kScales, kFreshScale});
    } else if (format == StateFormat::kFlashOptim) {
      specs.push_back({name + "_scale", DType::kFP16, kGroup, MemoryClass::kScales, 0});
    }
  }

  UpdateTensor arguments(const ShardSlice& slice, const Settings& settings,
                         const StepFactors& factors) const {
    UpdateTensor tensor;
    tensor.weight_format = settings.weight_format;
    tensor.state_format = settings.state_format;
    tensor.gradient_dtype = slice.gradient.dtype;
    tensor.gradient = slice.gradient.data;
    tensor.weight = slice.weight.data;
    const bool codes = has_codes(tensor.state_format);
    size_t next = 0;
    if (correction_bytes(tensor.weight_format) > 0) tensor.correction = slice.states[next++];
    if (has_momentum(settings.rule, options_.hyper.beta1)) {
      tensor.momentum = slice.states[next++];
      if (codes) tensor.momentum_scale = static_cast<uint16_t*>(slice.states[next++]);
    }
    if (has_variance(settings.rule)) {
      tensor.variance = slice.states[next++];
      if (codes) tensor.variance_scale = static_cast<uint16_t*>(slice.states[next++]);
    }
    tensor.count = slice.weight.elements();
    tensor.first_element = slice.first_element;
    tensor.rejected_groups = factors.rejected_groups;
    tensor.health = factors.health;
    tensor.key = {options_.seed, static_cast<uint64_t>(slice.tensor)};
    if (settings.weight_decay.rate != 0) {
      set_decay(tensor, settings.rule, settings.weight_decay,
                rate_of(factors) * settings.learning_rate_factor);
    }
    return tensor;
  }

  Backend& backend_;
  ElementwiseOptions options_;
  std::unordered_map<std::string_view, const ParameterGroup*> group_of_;  // by parameter
};

}  // namespace

std::unique_ptr<UpdateRule> make_elementwise_rule(Backend& backend,
                                                  const ElementwiseOptions& options) {
  return std::make_unique<ElementwiseRule>(backend, options);
}

}  // namespace flashshard
