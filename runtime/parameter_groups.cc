#include "runtime/parameter_groups.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "kernels/error.h"
#include "runtime/config/schema.h"
#include "runtime/metrics/number_format.h"
#include "runtime/metrics/tables.h"

namespace flashshard {
namespace {

constexpr int kNoGroup = -1;

std::string described(const proto::OptimizerSection& optimizer, int group) {
  return fmt::format("optimizer.group[{}].pattern {}", group,
                     config::quoted(optimizer.group(group).pattern()));
}

bool fits_a_name(const ParameterSpec& parameter, std::string_view pattern) {
  return fits_pattern(parameter.name, pattern) ||
         std::ranges::any_of(parameter.tied_names,
                             [&](const std::string& name) { return fits_pattern(name, pattern); });
}

/// Whether the group's pattern has the tensor; refuses one that has a part of it alone.
bool has(const proto::OptimizerSection& optimizer, int group, const ParameterSpec& parameter) {
  const std::string& pattern = optimizer.group(group).pattern();
  if (fits_a_name(parameter, pattern)) return true;
  const auto fits = [&](const ParameterPart& part) { return fits_pattern(part.name, pattern); };
  const auto part = std::ranges::find_if(parameter.parts, fits);
  if (part == parameter.parts.end()) return false;
  if (std::ranges::all_of(parameter.parts, fits)) return true;
  throw Error(ExitCode::kUsage,
              fmt::format("{} fits {}, a part of {}, and not all its parts",
                          described(optimizer, group), part->name, parameter.name),
              "parameter groups",
              "parts that are stored as one tensor have one rate, one rule and one format: let the "
              "pattern fit the whole tensor's name");
}

/// The components of a dotted name, layer numbers as *.
std::vector<std::string> components_of(std::string_view name) {
  std::vector<std::string> components;
  while (true) {
    const size_t dot = std::min(name.find('.'), name.size());
    const std::string_view component = name.substr(0, dot);
    const bool number = std::ranges::all_of(
        component, [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; });
    components.emplace_back(number ? "*" : component);
    if (dot == name.size()) return components;
    name.remove_prefix(dot + 1);
  }
}

/// Patterns that would fit something: names without their layer's number, and their components.
std::string nearest_patterns(std::string_view pattern, std::span<const ParameterSpec> parameters) {
  std::set<std::string> names, patterns;
  for (const ParameterSpec& parameter : parameters) {
    const std::vector<std::string> components = components_of(parameter.name);
    names.insert(fmt::format("{}", fmt::join(components, ".")));
    patterns.insert(parameter.name);
    for (const std::string& component : components) {
      if (component == "*") continue;
      patterns.insert({"*" + component + "*", "*" + component, "*." + component});
    }
  }
  patterns.insert(names.begin(), names.end());
  const std::string near =
      config::did_you_mean(pattern, std::vector<std::string>(patterns.begin(), patterns.end()));
  return near.empty() ? fmt::format("the model has {}", fmt::join(names, ", ")) : near;
}

/// The group of every tensor, or kNoGroup.
std::vector<int> groups_of_tensors(const proto::OptimizerSection& optimizer,
                                   std::span<const ParameterSpec> parameters) {
  std::vector<int> group_of(parameters.size(), kNoGroup);
  for (int g = 0; g < optimizer.group_size(); ++g) {
    bool found = false;
    for (size_t t = 0; t < parameters.size(); ++t) {
      if (!has(optimizer, g, parameters[t])) continue;
      group_of[t] = g;
      found = true;
    }
    if (!found) {
      throw Error(ExitCode::kUsage, described(optimizer, g) + " fits no parameter of the model",
                  "parameter groups", nearest_patterns(optimizer.group(g).pattern(), parameters));
    }
  }
  return group_of;
}

/// What decides which bytes a tensor's state has, and what they mean.
struct StateSettings {
  proto::UpdateRuleKind::Value rule;
  proto::OptimizerState::Value state;
  int master_weight_bits;
  bool operator==(const StateSettings&) const = default;
};

StateSettings state_settings(const proto::OptimizerSection& optimizer, int group,
                             const ParameterSpec& parameter) {
  const bool vector = parameter.role == ParameterRole::kVector;
  StateSettings settings{optimizer.rule(), vector ? proto::OptimizerState::FP32 : optimizer.state(),
                         vector ? 32 : optimizer.master_weight_bits()};
  if (group == kNoGroup) return settings;
  const proto::ParameterGroup& own = optimizer.group(group);
  if (own.has_rule()) settings.rule = own.rule();
  if (own.has_state()) settings.state = own.state();
  if (own.has_master_weight_bits()) settings.master_weight_bits = own.master_weight_bits();
  return settings;
}

std::string text_of(const StateSettings& settings) {
  return fmt::format(
      "rule {}, state {}, master_weight_bits {}", proto::UpdateRuleKind::Value_Name(settings.rule),
      proto::OptimizerState::Value_Name(settings.state), settings.master_weight_bits);
}

/// What the group sets, in text format.
std::string differs_in(proto::ParameterGroup group) {
  group.clear_pattern();
  google::protobuf::TextFormat::Printer printer;
  printer.SetSingleLineMode(true);
  std::string text;
  printer.PrintToString(group, &text);
  while (text.ends_with(' ')) text.pop_back();
  return text;
}

}  // namespace

bool fits_pattern(std::string_view name, std::string_view pattern) {
  constexpr size_t kNone = std::string_view::npos;
  size_t n = 0, p = 0;
  size_t star = kNone, star_name = 0;  // the last *, and where the name stood at it
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_name = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != kNone) {
      p = star + 1;
      n = ++star_name;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

std::vector<ParameterGroupMembers> members_of_groups(const proto::OptimizerSection& optimizer,
                                                     std::span<const ParameterSpec> parameters) {
  const std::vector<int> group_of = groups_of_tensors(optimizer, parameters);
  std::vector<ParameterGroupMembers> groups(static_cast<size_t>(optimizer.group_size()));
  for (size_t t = 0; t < parameters.size(); ++t) {
    if (group_of[t] == kNoGroup) continue;
    ParameterGroupMembers& group = groups[static_cast<size_t>(group_of[t])];
    group.tensors.push_back(static_cast<int>(t));
    group.elements += parameters[t].elements();
  }
  for (int g = 0; g < optimizer.group_size(); ++g) {
    if (!groups[static_cast<size_t>(g)].tensors.empty()) continue;
    throw Error(ExitCode::kUsage,
                described(optimizer, g) + " keeps nothing: its tensors all belong to later groups",
                "parameter groups",
                "a tensor belongs to the last group that fits it: put general patterns first");
  }
  return groups;
}

std::vector<TensorSettings> settings_of_tensors(const proto::OptimizerSection& optimizer,
                                                std::span<const ParameterSpec> parameters) {
  const std::vector<int> groups = groups_of_tensors(optimizer, parameters);
  std::vector<TensorSettings> all;
  for (size_t t = 0; t < parameters.size(); ++t) {
    const StateSettings stored = state_settings(optimizer, groups[t], parameters[t]);
    const double factor =
        groups[t] == kNoGroup ? 1 : optimizer.group(groups[t]).learning_rate_factor();
    all.push_back({stored.rule, stored.state, stored.master_weight_bits, factor});
  }
  return all;
}

void require_same_states(const proto::OptimizerSection& before,
                         const proto::OptimizerSection& after,
                         std::span<const ParameterSpec> parameters, const std::string& where) {
  const std::vector<int> old_groups = groups_of_tensors(before, parameters);
  const std::vector<int> new_groups = groups_of_tensors(after, parameters);
  for (size_t t = 0; t < parameters.size(); ++t) {
    const StateSettings old_settings = state_settings(before, old_groups[t], parameters[t]);
    const StateSettings new_settings = state_settings(after, new_groups[t], parameters[t]);
    if (old_settings == new_settings) continue;
    throw Error(ExitCode::kUsage,
                fmt::format("optimizer.group: {} had {} when the checkpoint was saved and has {} "
                            "now",
                            parameters[t].name, text_of(old_settings), text_of(new_settings)),
                where, "set it back, or start a new run in another run.dir");
  }
}

std::string parameter_group_table(const proto::OptimizerSection& optimizer,
                                  std::span<const ParameterSpec> parameters) {
  if (optimizer.group_size() == 0) return {};
  using metrics::Alignment;
  metrics::TextTable table("Parameter groups", {{"pattern", Alignment::kLeft},
                                                {"tensors", Alignment::kRight},
                                                {"parameters", Alignment::kRight},
                                                {"differs in", Alignment::kLeft}});
  auto tensors = static_cast<int64_t>(parameters.size());
  int64_t elements = 0;
  for (const ParameterSpec& parameter : parameters) elements += parameter.elements();
  const auto groups = members_of_groups(optimizer, parameters);
  for (size_t g = 0; g < groups.size(); ++g) {
    const proto::ParameterGroup& group = optimizer.group(static_cast<int>(g));
    table.add_row({group.pattern(), fmt::format("{}", groups[g].tensors.size()),
                   metrics::with_thousands(groups[g].elements), differs_in(group)});
    tensors -= static_cast<int64_t>(groups[g].tensors.size());
    elements -= groups[g].elements;
  }
  table.add_row({"no group", fmt::format("{}", tensors), metrics::with_thousands(elements), ""});
  return table.render();
}

}  // namespace flashshard
