// See run_config.h.
#include "runtime/config/run_config.h"

#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <nlohmann/json.hpp>

#include "runtime/config/presets.h"
#include "runtime/config/schema.h"
#include "runtime/config/text_reader.h"
#include "runtime/config/validation.h"

namespace flashshard {
namespace {

using google::protobuf::FieldDescriptor;

/// Stores the value that the field has, set or default: afterwards it is set.
void make_explicit(google::protobuf::Message& section, const FieldDescriptor& field) {
  const auto* reflection = section.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection->SetInt32(&section, &field, reflection->GetInt32(section, &field));
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection->SetInt64(&section, &field, reflection->GetInt64(section, &field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return reflection->SetUInt64(&section, &field, reflection->GetUInt64(section, &field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection->SetDouble(&section, &field, reflection->GetDouble(section, &field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->SetBool(&section, &field, reflection->GetBool(section, &field));
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection->SetEnum(&section, &field, reflection->GetEnum(section, &field));
    default:
      return reflection->SetString(&section, &field, reflection->GetString(section, &field));
  }
}

nlohmann::ordered_json json_value(const google::protobuf::Message& section,
                                  const FieldDescriptor& field) {
  const auto* reflection = section.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection->GetInt32(section, &field);
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection->GetInt64(section, &field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return reflection->GetUInt64(section, &field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection->GetDouble(section, &field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->GetBool(section, &field);
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection->GetEnum(section, &field)->name();
    default:
      return reflection->GetString(section, &field);
  }
}

nlohmann::ordered_json json_values(const proto::RunConfig& config,
                                   const config::RepeatedSetting& repeated) {
  const auto& section = config.GetReflection()->GetMessage(config, repeated.section);
  const auto* reflection = section.GetReflection();
  nlohmann::ordered_json values = nlohmann::ordered_json::array();
  for (int i = 0; i < reflection->FieldSize(section, repeated.field); ++i) {
    const auto& message = reflection->GetRepeatedMessage(section, repeated.field, i);
    nlohmann::ordered_json& value = values.emplace_back();
    for (const auto& field : repeated.fields) {
      if (!message.GetReflection()->HasField(message, field.field)) continue;
      value[field.field->name()] = json_value(message, *field.field);
    }
  }
  return values;
}

void fill_defaults(proto::RunConfig& config) {
  for (const auto& field : config::setting_fields()) {
    make_explicit(config::section_of(config, field), *field.field);
  }
}

void resolve(proto::RunConfig& config, const config::Origins& origins, const std::string& source) {
  auto& model = *config.mutable_model();
  auto& optimizer = *config.mutable_optimizer();
  const auto preset = origins.find("model.preset");
  config::apply_model_preset(model, preset == origins.end() ? source : preset->second);
  if (model.dtype() == proto::WeightType::FP32 && !optimizer.has_master_weight_bits()) {
    optimizer.set_master_weight_bits(32);
  }
  if (optimizer.state_format() == proto::StateFormatVersion::FLASHOPTIM_V1 &&
      !optimizer.has_rounding()) {
    optimizer.set_rounding(proto::RoundingMode::NEAREST);
  }
  config::require_ranges(config, origins, source);
  config::require_rules(config, source);
  if (model.kv_heads() == 0) model.set_kv_heads(model.heads());
  if (model.head_dim() == 0) model.set_head_dim(model.hidden_size() / model.heads());
  fill_defaults(config);
}

}  // namespace

proto::RunConfig parse_run_config(std::string_view text, const std::string& source,
                                  std::span<const std::string> overrides) {
  proto::RunConfig config;
  config::Origins origins;
  config::read_text(text, source, config, origins);
  for (const std::string& assignment : overrides) {
    config::apply_override(assignment, config, origins);
  }
  resolve(config, origins, source);
  return config;
}

proto::RunConfig load_run_config(const std::string& path, std::span<const std::string> overrides) {
  return parse_run_config(config::read_config_file(path), path, overrides);
}

std::string to_text(const proto::RunConfig& config) {
  proto::RunConfig whole = config;
  fill_defaults(whole);
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  std::string text;
  printer.PrintToString(whole, &text);
  return text;
}

nlohmann::ordered_json to_json(const proto::RunConfig& config) {
  nlohmann::ordered_json json;
  for (const auto& field : config::setting_fields()) {
    json[field.section->name()][field.field->name()] =
        json_value(config::section_of(config, field), *field.field);
  }
  for (const auto& repeated : config::repeated_settings()) {
    json[repeated.section->name()][repeated.field->name()] = json_values(config, repeated);
  }
  return json;
}

std::vector<ConfigDifference> differences(const proto::RunConfig& before,
                                          const proto::RunConfig& after) {
  std::vector<ConfigDifference> found;
  for (const auto& field : config::setting_fields()) {
    std::string old_value = config::value_text(before, field);
    std::string new_value = config::value_text(after, field);
    if (old_value == new_value) continue;
    found.push_back({field.path, std::move(old_value), std::move(new_value),
                     field.setting().fixed_at_resume()});
  }
  for (const auto& repeated : config::repeated_settings()) {
    std::string old_value = config::value_text(before, repeated);
    std::string new_value = config::value_text(after, repeated);
    if (old_value == new_value) continue;
    found.push_back({repeated.path, std::move(old_value), std::move(new_value), false});
  }
  return found;
}

}  // namespace flashshard
