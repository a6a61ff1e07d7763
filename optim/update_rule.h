// How one shard changes. A rule declares its state tensors and works in phases, so that a rule with
// whole-matrix scalars (APOLLO, Adafactor) costs one batched reduction a step, and an elementwise
// rule none.
//
//   accumulate(bucket)  ->  partial scalars  ->  one reduction for all tensors  ->  apply(bucket)
//
// A new optimizer is one file in optim/rules/ plus its formulas in kernels/numerics/.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "optim/memory.h"
#include "optim/parameter_spec.h"
#include "optim/shard_layout.h"

namespace flashshard {

/// One sharded tensor beside a parameter's weight: `bytes_per_row = elements_per_row / group *
/// element bytes`, one element for each `group` weight elements of a row. group 1: one a weight
/// element (codes, fp32 moments, correction); group 32: one a quantisation group (scales). Short
/// last groups count as one.
struct StateTensorSpec {
  std::string name;  // "correction" ("error_correction" in V1), "momentum", "momentum_scale", ...
  DType dtype = DType::kUINT8;
  int64_t group = 1;
  MemoryClass memory_class = MemoryClass::kOther;
  uint32_t initial_bits = 0;  // every element's bit pattern in a fresh state

  int64_t elements_for(int64_t weight_elements) const {
    return (weight_elements + group - 1) / group;
  }
};

/// A contiguous run of whole units of one parameter on this rank, with all that a rule may touch.
struct ShardSlice {
  const ParameterSpec* parameter = nullptr;
  int tensor = 0;             // index in the layout
  Tensor weight;              // (rows, cols) bf16 or fp32: these rows inside the rank's weight
  Tensor gradient;            // (rows, cols) reduced gradient of the same rows, before clipping
  std::vector<void*> states;  // by index in UpdateRule::states(parameter), at these rows
  int64_t first_element = 0;  // in the whole tensor
};

/// What one step multiplies with, the same on every rank.
struct StepFactors {
  double learning_rate = 0;
  double gradient_factor = 1;  // clip coefficient / global token count
  uint64_t t = 0;              // applied updates, this one included (bias correction, rounding key)
  /// Host memory, added to: groups of 32 left untouched because a new value lay outside the
  /// format's domain. May be null.
  int64_t* rejected_groups = nullptr;
  UpdateHealth* health = nullptr;  // host memory, added to; may be null
  /// The gradient is one of several whose mean a step takes, and goes into the moments alone: the
  /// first lets them decay, after the last the weight changes (AccumulatorFormat::kMoments).
  bool first = true, last = true;
};

class UpdateRule {
 public:
  virtual ~UpdateRule() = default;

  virtual std::string_view name() const = 0;
  /// State tensors of a parameter, the weight's correction included; in checkpoint order.
  virtual std::vector<StateTensorSpec> states(const ParameterSpec& parameter) const = 0;
  virtual WeightFormat weight_format(const ParameterSpec& parameter) const = 0;

  /// Scalars of one parameter that are summed over ranks between the phases; 0 for elementwise
  /// rules.
  virtual int scalars(const ParameterSpec& parameter) const = 0;
  /// First phase: adds this slice's part to `partial` (scalars(parameter) of them). Not called when
  /// there are none.
  virtual void accumulate(const ShardSlice& slice, const StepFactors& factors,
                          std::span<double> partial) = 0;
  /// Second phase: updates weight and states in place. `reduced[i]` belongs to slices[i].
  virtual void apply(std::span<const ShardSlice> slices, const StepFactors& factors,
                     std::span<const std::span<const double>> reduced) = 0;
};

/// Elements per row and group of the weight (groups of 32) and of every state: what a unit must be
/// a multiple of.
int64_t unit_rows_of(const UpdateRule& rule, const ParameterSpec& parameter);

/// Tensors that change in another way; what is absent is as the options have it.
struct ParameterGroup {
  std::vector<std::string> parameters = {};  // names of whole tensors; each is in one group at most
  double learning_rate_factor = 1;
  std::optional<double> weight_decay = {};  // of all its tensors, whether they have `decay` or not
  std::optional<Rule> rule = {};
  std::optional<WeightFormat> weight_format = {};  // of vectors too
  std::optional<StateFormat> state_format = {};    // of vectors too
};

struct ElementwiseOptions {
  Rule rule = Rule::kAdamW;
  RuleHyperparameters hyper;
  WeightDecay weight_decay{.rate = 0.1};                // of parameters with `decay`
  WeightFormat weight_format = WeightFormat::kSplit24;  // of matrices and embeddings
  WeightFormat vector_weight_format = WeightFormat::kSplit32;
  StateFormat state_format = StateFormat::kCompanded;  // of matrices and embeddings; vectors: fp32
  Rounding rounding = Rounding::kStochastic;
  uint64_t seed = 0;
  std::vector<ParameterGroup> groups = {};
};
/// AdamW, Adam, Lion, SGD or SGDW. A state that the rule does not need does not exist. Throws
/// Error(kInternal) for a parameter in two groups.
std::unique_ptr<UpdateRule> make_elementwise_rule(Backend& backend,
                                                  const ElementwiseOptions& options);

}  // namespace flashshard
