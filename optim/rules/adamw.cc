// AdamW (Loshchilov & Hutter, arXiv 1711.05101) on sharded, companded state; the formulas stand in
// kernels/numerics/. Matrices and embeddings have the configured formats; vectors (norm gains,
// biases), a fraction of a percent of a model, keep fp32 state and a 32-bit master.
#include <array>

#include "optim/update_rule.h"

namespace flashshard {
namespace {

class AdamWRule final : public UpdateRule {
 public:
  AdamWRule(Backend& backend, const AdamWOptions& options) : backend_(backend), options_(options) {}

  std::string_view name() const override { return "ADAMW"; }

  WeightFormat weight_format(const ParameterSpec& parameter) const override {
    if (parameter.role != ParameterRole::kVector) return options_.weight_format;
    return options_.weight_format == WeightFormat::kFP32 ? WeightFormat::kFP32
                                                         : WeightFormat::kSplit32;
  }

  std::vector<StateTensorSpec> states(const ParameterSpec& parameter) const override {
    std::vector<StateTensorSpec> specs;
    const WeightFormat format = weight_format(parameter);
    if (correction_bytes(format) > 0) {
      const DType dtype = format == WeightFormat::kSplit24 ? DType::kINT8 : DType::kINT16;
      specs.push_back({"correction", dtype, 1, MemoryClass::kCorrection, 0});
    }
    if (state_format(parameter) == StateFormat::kFP32) {
      specs.push_back({"momentum", DType::kFP32, 1, MemoryClass::kMomentum, 0});
      specs.push_back({"variance", DType::kFP32, 1, MemoryClass::kVariance, 0});
    } else {
      specs.push_back({"momentum", DType::kINT8, 1, MemoryClass::kMomentum, 0});
      specs.push_back(
          {"momentum_scale", DType::kUINT16, kGroup, MemoryClass::kScales, kFreshScale});
      specs.push_back({"variance", DType::kUINT8, 1, MemoryClass::kVariance, 0});
      specs.push_back(
          {"variance_scale", DType::kUINT16, kGroup, MemoryClass::kScales, kFreshScale});
    }
    return specs;
  }

  int scalars(const ParameterSpec&) const override { return 0; }
  void accumulate(const ShardSlice&, const StepFactors&, std::span<double>) override {}

  void apply(std::span<const ShardSlice> slices, const StepFactors& factors,
             std::span<const std::span<const double>>) override {
    const AdamWFactors constants =
        make_adamw_factors(options_.hyper, factors.learning_rate, factors.gradient_factor,
                           options_.rounding, factors.t);
    std::vector<AdamWTensor> tensors;
    for (const ShardSlice& slice : slices) tensors.push_back(arguments(slice, factors));
    backend_.adamw(tensors, constants);
  }

 private:
  StateFormat state_format(const ParameterSpec& parameter) const {
    return parameter.role == ParameterRole::kVector ? StateFormat::kFP32 : options_.state_format;
  }

  AdamWTensor arguments(const ShardSlice& slice, const StepFactors& factors) const {
    AdamWTensor tensor;
    tensor.weight_format = weight_format(*slice.parameter);
    tensor.state_format = state_format(*slice.parameter);
    tensor.gradient_dtype = slice.gradient.dtype;
    tensor.gradient = slice.gradient.data;
    tensor.weight = slice.weight.data;
    size_t next = 0;
    if (correction_bytes(tensor.weight_format) > 0) tensor.correction = slice.states[next++];
    tensor.momentum = slice.states[next++];
    if (tensor.state_format == StateFormat::kCompanded) {
      tensor.momentum_scale = static_cast<uint16_t*>(slice.states[next++]);
    }
    tensor.variance = slice.states[next++];
    if (tensor.state_format == StateFormat::kCompanded) {
      tensor.variance_scale = static_cast<uint16_t*>(slice.states[next++]);
    }
    tensor.count = slice.weight.elements();
    tensor.first_element = slice.first_element;
    tensor.rejected_groups = factors.rejected_groups;
    tensor.key = {options_.seed, static_cast<uint64_t>(slice.tensor)};
    if (slice.parameter->decay) {
      tensor.weight_decay_factor =
          static_cast<float>(1.0 - factors.learning_rate * options_.weight_decay);
    }
    return tensor;
  }

  Backend& backend_;
  AdamWOptions options_;
};

}  // namespace

std::unique_ptr<UpdateRule> make_adamw_rule(Backend& backend, const AdamWOptions& options) {
  return std::make_unique<AdamWRule>(backend, options);
}

}  // namespace flashshard
