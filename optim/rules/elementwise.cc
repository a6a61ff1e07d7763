// The elementwise rules on sharded, companded state: AdamW (arXiv 1711.05101), Adam (1412.6980),
// Lion (2302.06675), SGD and SGDW; their formulas stand in kernels/numerics/. Matrices and
// embeddings have the configured formats; vectors (norm gains, biases), a fraction of a percent of
// a model, keep fp32 state and a 32-bit master.
#include <array>

#include "optim/update_rule.h"

namespace flashshard {
namespace {

class ElementwiseRule final : public UpdateRule {
 public:
  ElementwiseRule(Backend& backend, const ElementwiseOptions& options)
      : backend_(backend), options_(options) {}

  std::string_view name() const override {
    constexpr std::array<std::string_view, 5> names = {"ADAMW", "ADAM", "LION", "SGD", "SGDW"};
    return names[static_cast<size_t>(options_.rule)];
  }

  WeightFormat weight_format(const ParameterSpec& parameter) const override {
    return parameter.role == ParameterRole::kVector ? options_.vector_weight_format
                                                    : options_.weight_format;
  }

  std::vector<StateTensorSpec> states(const ParameterSpec& parameter) const override {
    std::vector<StateTensorSpec> specs;
    add_correction(weight_format(parameter), specs);
    const StateFormat format = state_format(parameter);
    if (has_momentum(options_.rule, options_.hyper.beta1)) {
      add_moment("momentum", DType::kINT8, MemoryClass::kMomentum, format, specs);
    }
    if (has_variance(options_.rule)) {
      add_moment("variance", DType::kUINT8, MemoryClass::kVariance, format, specs);
    }
    return specs;
  }

  int scalars(const ParameterSpec&) const override { return 0; }
  void accumulate(const ShardSlice&, const StepFactors&, std::span<double>) override {}

  void apply(std::span<const ShardSlice> slices, const StepFactors& factors,
             std::span<const std::span<const double>>) override {
    const UpdateFactors constants =
        make_update_factors(options_.rule, options_.hyper, factors.learning_rate,
                            factors.gradient_factor, options_.rounding, factors.t);
    std::vector<UpdateTensor> tensors;
    for (const ShardSlice& slice : slices) tensors.push_back(arguments(slice, factors));
    backend_.update(tensors, constants);
  }

 private:
  StateFormat state_format(const ParameterSpec& parameter) const {
    return parameter.role == ParameterRole::kVector ? StateFormat::kFP32 : options_.state_format;
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

  UpdateTensor arguments(const ShardSlice& slice, const StepFactors& factors) const {
    UpdateTensor tensor;
    tensor.weight_format = weight_format(*slice.parameter);
    tensor.state_format = state_format(*slice.parameter);
    tensor.gradient_dtype = slice.gradient.dtype;
    tensor.gradient = slice.gradient.data;
    tensor.weight = slice.weight.data;
    const bool codes = has_codes(tensor.state_format);
    size_t next = 0;
    if (correction_bytes(tensor.weight_format) > 0) tensor.correction = slice.states[next++];
    if (has_momentum(options_.rule, options_.hyper.beta1)) {
      tensor.momentum = slice.states[next++];
      if (codes) tensor.momentum_scale = static_cast<uint16_t*>(slice.states[next++]);
    }
    if (has_variance(options_.rule)) {
      tensor.variance = slice.states[next++];
      if (codes) tensor.variance_scale = static_cast<uint16_t*>(slice.states[next++]);
    }
    tensor.count = slice.weight.elements();
    tensor.first_element = slice.first_element;
    tensor.rejected_groups = factors.rejected_groups;
    tensor.health = factors.health;
    tensor.key = {options_.seed, static_cast<uint64_t>(slice.tensor)};
    if (slice.parameter->decay) {
      set_decay(tensor, options_.rule, options_.weight_decay, factors.learning_rate);
    }
    return tensor;
  }

  Backend& backend_;
  ElementwiseOptions options_;
};

}  // namespace

std::unique_ptr<UpdateRule> make_elementwise_rule(Backend& backend,
                                                  const ElementwiseOptions& options) {
  return std::make_unique<ElementwiseRule>(backend, options);
}

}  // namespace flashshard
