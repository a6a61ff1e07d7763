// See validation.h.
#include "runtime/config/validation.h"

#include <fmt/format.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/error.h"
#include "optim/legality.h"
#include "runtime/config/presets.h"
#include "runtime/config/schema.h"
#include "runtime/config/sharding_options.h"

namespace flashshard::config {
namespace {

using google::protobuf::FieldDescriptor;
using Violation = std::optional<std::string>;

constexpr int64_t kLargestMicroBatchTokens = int64_t{1} << 26;
constexpr double kLargestRunTokens = 1e15;

std::optional<double> numeric_value(const google::protobuf::Message& section,
                                    const FieldDescriptor& field) {
  const auto* reflection = section.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection->GetInt32(section, &field);
    case FieldDescriptor::CPPTYPE_INT64:
      return static_cast<double>(reflection->GetInt64(section, &field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection->GetDouble(section, &field);
    default:
      return std::nullopt;
  }
}

bool in_range(double value, const proto::Setting& setting) {
  if (!std::isfinite(value)) return false;
  if (setting.allowed_size() > 0) {
    return std::ranges::any_of(setting.allowed(),
                               [&](int64_t v) { return static_cast<double>(v) == value; });
  }
  return !(setting.has_minimum() && value < setting.minimum()) &&
         !(setting.has_maximum() && value > setting.maximum()) &&
         !(setting.has_above() && value <= setting.above()) &&
         !(setting.has_below() && value >= setting.below());
}

[[noreturn]] void refuse_unset(const SettingField& field, const std::string& source) {
  std::string hint = "set it in the file or with --set " + field.path + "=...";
  if (field.section->name() == "model") {
    hint += ", or take a shape by model.preset:";
    for (const proto::ModelPreset& preset : model_presets()) hint += " " + preset.name();
  }
  throw Error(ExitCode::kUsage, field.path + " is not set and has no default", source, hint);
}

// The rules, each with its statement in the table below.

Violation kv_heads_divide_heads(const proto::RunConfig& config) {
  const auto& model = config.model();
  if (model.kv_heads() == 0 || model.heads() % model.kv_heads() == 0) return {};
  return fmt::format("model.heads ({}) must be a multiple of model.kv_heads ({})", model.heads(),
                     model.kv_heads());
}

Violation heads_divide_hidden_size(const proto::RunConfig& config) {
  const auto& model = config.model();
  if (model.head_dim() != 0 || model.hidden_size() % model.heads() == 0) return {};
  return fmt::format(
      "model.hidden_size ({}) must be a multiple of model.heads ({}) where model.head_dim is 0",
      model.hidden_size(), model.heads());
}

Violation head_dim_is_even(const proto::RunConfig& config) {
  const auto& model = config.model();
  if (model.head_dim() != 0) {
    if (model.head_dim() % 2 == 0) return {};
    return fmt::format("model.head_dim ({}) must be even: rotary embedding turns pairs",
                       model.head_dim());
  }
  const int64_t head_dim = model.hidden_size() / model.heads();
  if (head_dim % 2 == 0) return {};
  return fmt::format(
      "model.hidden_size ({}) / model.heads ({}) is {} and must be even: rotary embedding turns "
      "pairs",
      model.hidden_size(), model.heads(), head_dim);
}

Violation rope_bands_are_ordered(const proto::RunConfig& config) {
  const auto& model = config.model();
  if (model.rope_scaling() != proto::RopeScalingKind::LLAMA3) return {};
  if (model.rope_low_frequency_factor() < model.rope_high_frequency_factor()) return {};
  return fmt::format(
      "model.rope_low_frequency_factor ({}) must be below model.rope_high_frequency_factor ({})",
      model.rope_low_frequency_factor(), model.rope_high_frequency_factor());
}

Violation sequence_fits_positions(const proto::RunConfig& config) {
  const int64_t positions = config.model().max_position_embeddings();
  const int64_t length = config.train().sequence_length();
  if (positions == 0 || length <= positions) return {};
  return fmt::format(
      "train.sequence_length ({}) must be at most model.max_position_embeddings ({}), the longest "
      "sequence that the model is made for",
      length, positions);
}

Violation profiled_step_exists(const proto::RunConfig& config) {
  if (config.run().profile() <= config.train().steps()) return {};
  return fmt::format("run.profile ({}) must be at most train.steps ({})", config.run().profile(),
                     config.train().steps());
}

Violation micro_batch_divides_global_batch(const proto::RunConfig& config) {
  const auto& train = config.train();
  if (train.global_batch() % train.micro_batch() == 0) return {};
  return fmt::format("train.global_batch ({}) must be a multiple of train.micro_batch ({})",
                     train.global_batch(), train.micro_batch());
}

Violation micro_batch_is_addressable(const proto::RunConfig& config) {
  const auto& train = config.train();
  if (train.micro_batch() * train.sequence_length() <= kLargestMicroBatchTokens) return {};
  return fmt::format(
      "train.micro_batch ({}) x train.sequence_length ({}) must be at most {} tokens",
      train.micro_batch(), train.sequence_length(), kLargestMicroBatchTokens);
}

Violation run_is_countable(const proto::RunConfig& config) {
  const auto& train = config.train();
  const double tokens = static_cast<double>(train.steps()) *
                        static_cast<double>(train.global_batch()) *
                        static_cast<double>(train.sequence_length());
  if (tokens <= kLargestRunTokens) return {};
  return fmt::format(
      "train.steps ({}) x train.global_batch ({}) x train.sequence_length ({}) must be at most {} "
      "tokens",
      train.steps(), train.global_batch(), train.sequence_length(), kLargestRunTokens);
}

Violation warmup_fits(const proto::RunConfig& config) {
  const int64_t warmup = config.schedule().warmup_steps();
  if (warmup <= config.train().steps()) return {};
  return fmt::format("schedule.warmup_steps ({}) must be at most train.steps ({})", warmup,
                     config.train().steps());
}

Violation decay_fits(const proto::RunConfig& config) {
  const auto& schedule = config.schedule();
  if (schedule.kind() != proto::ScheduleKind::WSD) return {};
  const int64_t steps = config.train().steps();
  const int64_t decay = std::llround(schedule.decay_fraction() * static_cast<double>(steps));
  if (schedule.warmup_steps() + decay <= steps) return {};
  return fmt::format(
      "schedule.warmup_steps ({}) and schedule.decay_fraction ({}) of train.steps ({}) overlap in "
      "schedule.kind WSD",
      schedule.warmup_steps(), schedule.decay_fraction(), steps);
}

bool is_sgd(const proto::OptimizerSection& optimizer) {
  return optimizer.rule() == proto::UpdateRuleKind::SGD ||
         optimizer.rule() == proto::UpdateRuleKind::SGDW;
}

bool adds_decay_to_gradient(proto::UpdateRuleKind::Value rule) {
  return rule == proto::UpdateRuleKind::ADAM || rule == proto::UpdateRuleKind::SGD;
}

/// The first group that breaks a rule between fields.
template <class Breaks>
Violation first_group(const proto::RunConfig& config, const Breaks& breaks) {
  for (int i = 0; i < config.optimizer().group_size(); ++i) {
    Violation violation =
        breaks(config.optimizer().group(i), fmt::format("optimizer.group[{}]", i));
    if (violation) return violation;
  }
  return {};
}

Violation decay_shrinks(const proto::RunConfig& config) {
  const auto& optimizer = config.optimizer();
  if (optimizer.decouple_lr()) {
    if (optimizer.weight_decay() < 1) return {};
    return fmt::format(
        "optimizer.weight_decay ({}) must be below 1 with optimizer.decouple_lr: a step would turn "
        "weights around",
        optimizer.weight_decay());
  }
  if (optimizer.learning_rate() * optimizer.weight_decay() < 1) return {};
  return fmt::format(
      "optimizer.learning_rate ({}) x optimizer.weight_decay ({}) must be below 1: a step would "
      "turn weights around",
      optimizer.learning_rate(), optimizer.weight_decay());
}

Violation decouple_lr_has_a_decoupled_decay(const proto::RunConfig& config) {
  const auto& optimizer = config.optimizer();
  if (!optimizer.decouple_lr()) return {};
  const auto refuse = [](const std::string& path, proto::UpdateRuleKind::Value rule) {
    return fmt::format("optimizer.decouple_lr needs a rule that shrinks the weight, not {} {}",
                       path, proto::UpdateRuleKind::Value_Name(rule));
  };
  if (adds_decay_to_gradient(optimizer.rule())) return refuse("optimizer.rule", optimizer.rule());
  return first_group(config, [&](const proto::ParameterGroup& group, const std::string& path) {
    return group.has_rule() && adds_decay_to_gradient(group.rule())
               ? Violation(refuse(path + ".rule", group.rule()))
               : Violation();
  });
}

Violation group_decay_shrinks(const proto::RunConfig& config) {
  const auto& optimizer = config.optimizer();
  return first_group(config, [&](const proto::ParameterGroup& group, const std::string& path) {
    const double decay = group.has_weight_decay() ? group.weight_decay() : optimizer.weight_decay();
    const double rate =
        optimizer.decouple_lr() ? 1 : optimizer.learning_rate() * group.learning_rate_factor();
    if (rate * decay < 1 || group.learning_rate_factor() == 0) return Violation();
    return Violation(fmt::format(
        "{} takes {} of a weight in a step at the peak of the learning rate, with "
        "optimizer.learning_rate ({}), its learning_rate_factor ({}) and a weight decay of {}: it "
        "must be less than 1",
        path, rate * decay, optimizer.learning_rate(), group.learning_rate_factor(), decay));
  });
}

Violation betas_are_below_1_in_fp32(const proto::RunConfig& config) {
  for (const auto& [name, beta] : {std::pair{"beta1", config.optimizer().beta1()},
                                   std::pair{"beta2", config.optimizer().beta2()}}) {
    if (static_cast<float>(beta) < 1) continue;
    return fmt::format("optimizer.{} is {}, which is 1 in fp32; the largest below is 0.99999994",
                       name, beta);
  }
  return {};
}

Violation dampening_and_nesterov_have_a_momentum(const proto::RunConfig& config) {
  const auto& optimizer = config.optimizer();
  if (optimizer.dampening() == 0 && !optimizer.nesterov()) return {};
  if (!is_sgd(optimizer) || optimizer.beta1() == 0) {
    return fmt::format(
        "optimizer.dampening and optimizer.nesterov need optimizer.rule SGD or SGDW and "
        "optimizer.beta1 above 0, not {} and {}",
        proto::UpdateRuleKind::Value_Name(optimizer.rule()), optimizer.beta1());
  }
  if (!optimizer.nesterov() || optimizer.dampening() == 0) return {};
  return fmt::format("optimizer.nesterov needs optimizer.dampening 0, not {}",
                     optimizer.dampening());
}

Violation flashoptim_rounds_to_nearest(const proto::RunConfig& config) {
  const auto& optimizer = config.optimizer();
  if (optimizer.state_format() != proto::StateFormatVersion::FLASHOPTIM_V1 ||
      optimizer.rounding() == proto::RoundingMode::NEAREST) {
    return {};
  }
  return "optimizer.state_format FLASHOPTIM_V1 needs optimizer.rounding NEAREST (or unset): its "
         "codes are defined by it";
}

Violation two_level_has_groups(const proto::RunConfig& config) {
  const auto& parallelism = config.parallelism();
  const bool two_level = parallelism.order() == proto::ReductionOrder::TWO_LEVEL;
  if (two_level ? parallelism.order_group() >= 2 : parallelism.order_group() == 0) return {};
  return fmt::format("parallelism.order {} needs parallelism.order_group {}, not {}",
                     proto::ReductionOrder::Value_Name(parallelism.order()),
                     two_level ? "2 or more (groups of one are FLAT with fp32 on the wire)" : "0",
                     parallelism.order_group());
}

Violation fp32_model_has_fp32_state(const proto::RunConfig& config) {
  if (config.model().dtype() != proto::WeightType::FP32) return {};
  const auto refuse = [](const std::string& path) {
    return fmt::format(
        "model.dtype FP32 needs {} FP32: the conformance reference stores nothing in fewer bits",
        path);
  };
  if (config.optimizer().state() != proto::OptimizerState::FP32) return refuse("optimizer.state");
  return first_group(config, [&](const proto::ParameterGroup& group, const std::string& path) {
    return group.has_state() && group.state() != proto::OptimizerState::FP32
               ? Violation(refuse(path + ".state"))
               : Violation();
  });
}

Violation fp32_model_has_no_split_weight(const proto::RunConfig& config) {
  if (config.model().dtype() != proto::WeightType::FP32) return {};
  const auto check = [](const std::string& path, int bits) {
    return bits == 32 ? Violation()
                      : fmt::format(
                            "model.dtype FP32 needs {} 32 (or unset), not {}: the weight is "
                            "its own master",
                            path, bits);
  };
  if (Violation violation =
          check("optimizer.master_weight_bits", config.optimizer().master_weight_bits())) {
    return violation;
  }
  return first_group(config, [&](const proto::ParameterGroup& group, const std::string& path) {
    return group.has_master_weight_bits()
               ? check(path + ".master_weight_bits", group.master_weight_bits())
               : Violation();
  });
}

Violation fp32_model_has_fp32_accumulator(const proto::RunConfig& config) {
  const auto type = config.parallelism().accumulator();
  if (config.model().dtype() != proto::WeightType::FP32 || type == proto::AccumulatorType::FP32 ||
      type == proto::AccumulatorType::MOMENTS) {
    return {};
  }
  return fmt::format("model.dtype FP32 needs parallelism.accumulator FP32 or MOMENTS, not {}",
                     proto::AccumulatorType::Value_Name(type));
}

Violation reproducible_run_has_its_threads(const proto::RunConfig& config) {
  if (!config.parallelism().reproducible() || config.run().threads() > 0) return {};
  return "parallelism.reproducible needs run.threads above 0: threads decide the bits of forward "
         "and "
         "backward, and their default depends on the ranks of a host";
}

Violation kept_steps_are_saved(const proto::RunConfig& config) {
  const auto& checkpoint = config.checkpoint();
  if (checkpoint.keep_every() == 0) return {};
  if (checkpoint.every() > 0 && checkpoint.keep_every() % checkpoint.every() == 0) return {};
  return fmt::format(
      "checkpoint.keep_every ({}) must be a multiple of checkpoint.every ({}) above 0: other steps "
      "are not saved",
      checkpoint.keep_every(), checkpoint.every());
}

constexpr std::array kRules = {
    FieldRule{"`model.heads` is a multiple of `model.kv_heads`.", kv_heads_divide_heads},
    FieldRule{"`model.hidden_size` is a multiple of `model.heads` where `model.head_dim` is 0.",
              heads_divide_hidden_size},
    FieldRule{"The width of a head, given or `model.hidden_size` / `model.heads`, is even.",
              head_dim_is_even},
    FieldRule{"With `model.rope_scaling` LLAMA3, `model.rope_low_frequency_factor` is below "
              "`model.rope_high_frequency_factor`.",
              rope_bands_are_ordered},
    FieldRule{
        "`train.sequence_length` is at most `model.max_position_embeddings`, unless that is 0.",
        sequence_fits_positions},
    FieldRule{"`run.profile` is at most `train.steps`.", profiled_step_exists},
    FieldRule{"`train.global_batch` is a multiple of `train.micro_batch`.",
              micro_batch_divides_global_batch},
    FieldRule{"`train.micro_batch` x `train.sequence_length` is at most 2^26 tokens.",
              micro_batch_is_addressable},
    FieldRule{"`train.steps` x `train.global_batch` x `train.sequence_length` is at most 1e15 "
              "tokens.",
              run_is_countable},
    FieldRule{"`schedule.warmup_steps` is at most `train.steps`.", warmup_fits},
    FieldRule{"With `schedule.kind` WSD, warm-up and decay (`schedule.decay_fraction` of "
              "`train.steps`) do not overlap.",
              decay_fits},
    FieldRule{"`optimizer.learning_rate` x `optimizer.weight_decay` is below 1; with "
              "`optimizer.decouple_lr` `optimizer.weight_decay` is.",
              decay_shrinks},
    FieldRule{"The same holds in each `optimizer.group`, with its `learning_rate_factor` and its "
              "decay.",
              group_decay_shrinks},
    FieldRule{"`optimizer.decouple_lr` goes with the rules ADAMW, LION and SGDW, of "
              "`optimizer.group` too.",
              decouple_lr_has_a_decoupled_decay},
    FieldRule{"`optimizer.beta1` and `optimizer.beta2` are below 1 in fp32, too.",
              betas_are_below_1_in_fp32},
    FieldRule{
        "`optimizer.dampening` and `optimizer.nesterov` go with `optimizer.rule` SGD and SGDW "
        "and `optimizer.beta1` above 0, not both at once.",
        dampening_and_nesterov_have_a_momentum},
    FieldRule{"`optimizer.state_format` FLASHOPTIM_V1 needs `optimizer.rounding` NEAREST, which is "
              "then the default.",
              flashoptim_rounds_to_nearest},
    FieldRule{"`parallelism.order` TWO_LEVEL needs `parallelism.order_group` 2 or more, FLAT 0.",
              two_level_has_groups},
    FieldRule{"`model.dtype` FP32 needs `optimizer.state` FP32, of `optimizer.group` too.",
              fp32_model_has_fp32_state},
    FieldRule{"`model.dtype` FP32 needs `optimizer.master_weight_bits` 32, of `optimizer.group` "
              "too, which is then the default.",
              fp32_model_has_no_split_weight},
    FieldRule{"`model.dtype` FP32 needs `parallelism.accumulator` FP32 or MOMENTS.",
              fp32_model_has_fp32_accumulator},
    FieldRule{"`parallelism.reproducible` needs `run.threads` above 0.",
              reproducible_run_has_its_threads},
    FieldRule{"`checkpoint.keep_every` is a multiple of `checkpoint.every` above 0, or 0.",
              kept_steps_are_saved},
};

std::string place_of(const Origins& origins, const std::string& path) {
  const auto origin = origins.find(path);
  return origin == origins.end() ? "" : origin->second;
}

/// One value that is set: its range and, of a string, its characters. `path` as people know it.
void require_value(const google::protobuf::Message& message, const SettingField& field,
                   const std::string& path, const std::string& where) {
  if (const auto number = numeric_value(message, *field.field);
      number && !in_range(*number, field.setting())) {
    std::string text;
    google::protobuf::TextFormat::PrintFieldValueToString(message, field.field, -1, &text);
    throw Error(ExitCode::kUsage,
                fmt::format("{} is {}, allowed: {}", path, text, allowed_values(*field.field)),
                where);
  }
  if (field.field->cpp_type() != FieldDescriptor::CPPTYPE_STRING) return;
  const std::string text = message.GetReflection()->GetString(message, field.field);
  if (text.empty() && field.setting().required()) {
    throw Error(ExitCode::kUsage, path + " is empty", where);
  }
  require_text(text, where.empty() ? path : path + ", " + where, false);
}

void require_repeated_ranges(const proto::RunConfig& config, const RepeatedSetting& repeated,
                             const Origins& origins, const std::string& source) {
  const auto& section = config.GetReflection()->GetMessage(config, repeated.section);
  const auto* reflection = section.GetReflection();
  for (int i = 0; i < reflection->FieldSize(section, repeated.field); ++i) {
    const auto& message = reflection->GetRepeatedMessage(section, repeated.field, i);
    for (const SettingField& field : repeated.fields) {
      const std::string path = fmt::format("{}[{}].{}", repeated.path, i, field.field->name());
      if (message.GetReflection()->HasField(message, field.field)) {
        require_value(message, field, path, place_of(origins, path));
      } else if (field.setting().required()) {
        throw Error(ExitCode::kUsage, path + " is not set and has no default", source,
                    "every group needs one");
      }
    }
  }
}

}  // namespace

std::span<const FieldRule> field_rules() { return kRules; }

void require_ranges(const proto::RunConfig& config, const Origins& origins,
                    const std::string& source) {
  for (const SettingField& field : setting_fields()) {
    if (!is_set(config, field)) {
      if (field.setting().required()) refuse_unset(field, source);
      continue;
    }
    require_value(section_of(config, field), field, field.path, place_of(origins, field.path));
  }
  for (const RepeatedSetting& repeated : repeated_settings()) {
    require_repeated_ranges(config, repeated, origins, source);
  }
}

void require_rules(const proto::RunConfig& config, const std::string& source) {
  for (const FieldRule& rule : kRules) {
    if (const auto violation = rule.violation(config)) {
      throw Error(ExitCode::kUsage, *violation, source);
    }
  }
  require_legal(sharding_of(config), source);
}

}  // namespace flashshard::config
