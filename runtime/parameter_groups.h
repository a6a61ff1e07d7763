// Which tensors of a model each optimizer.group of a configuration has.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "optim/parameter_spec.h"
#include "proto/run.pb.h"

namespace flashshard {

/// True when the whole name fits the pattern: * stands for any characters, ? for one.
bool fits_pattern(std::string_view name, std::string_view pattern);

struct ParameterGroupMembers {
  std::vector<int> tensors;  // indices into the model's parameters, ascending
  int64_t elements = 0;
};

/// The members of every optimizer.group, in the order of the configuration. A pattern has a tensor
/// when it fits one of its names or all of its parts; of several groups the last one keeps it.
/// Throws Error(kUsage) for a pattern that fits nothing, that fits some parts of a tensor stored as
/// one, or whose tensors all belong to later groups.
std::vector<ParameterGroupMembers> members_of_groups(const proto::OptimizerSection& optimizer,
                                                     std::span<const ParameterSpec> parameters);

/// What the update of a tensor goes by, its group's settings included.
struct TensorSettings {
  proto::UpdateRuleKind::Value rule;
  proto::OptimizerState::Value state;
  int master_weight_bits;
  double learning_rate_factor;
};
/// Of every parameter. Throws like members_of_groups.
std::vector<TensorSettings> settings_of_tensors(const proto::OptimizerSection& optimizer,
                                                std::span<const ParameterSpec> parameters);

/// Throws Error(kUsage) naming the first tensor whose rule or stored state differs between two
/// configurations: a checkpoint of one cannot go on with the other. `where` is the checkpoint.
void require_same_states(const proto::OptimizerSection& before,
                         const proto::OptimizerSection& after,
                         std::span<const ParameterSpec> parameters, const std::string& where);

/// A table of the groups for people, the tensors of no group in its last row; empty without groups.
std::string parameter_group_table(const proto::OptimizerSection& optimizer,
                                  std::span<const ParameterSpec> parameters);

}  // namespace flashshard
