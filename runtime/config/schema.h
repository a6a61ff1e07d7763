// The fields of run.proto as data: paths, documentation, legal values, nearest names. Reading,
// validation, help and the reference in docs/ are all made from this table.
#pragma once

#include <google/protobuf/descriptor.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "proto/options.pb.h"
#include "proto/run.pb.h"

namespace flashshard::config {

/// One field of one section: `path` is "section.name".
struct SettingField {
  std::string path;
  const google::protobuf::FieldDescriptor* section = nullptr;  // in RunConfig
  const google::protobuf::FieldDescriptor* field = nullptr;    // in the section's message

  const proto::Setting& setting() const { return field->options().GetExtension(proto::setting); }
};

/// Every setting, in the order of the schema; those of repeated groups of settings aside.
std::span<const SettingField> setting_fields();

/// A field of a section that holds any number of messages of settings: `path` is "section.name".
struct RepeatedSetting {
  std::string path;
  const google::protobuf::FieldDescriptor* section = nullptr;  // in RunConfig
  const google::protobuf::FieldDescriptor* field = nullptr;    // in the section's message
  std::vector<SettingField> fields;  // of one of them: "section.name.field"

  const std::string& doc() const { return field->options().GetExtension(proto::setting).doc(); }
};
std::span<const RepeatedSetting> repeated_settings();
/// The messages of a repeated setting in text format, one behind the other; empty when there is
/// none.
std::string value_text(const proto::RunConfig& config, const RepeatedSetting& repeated);
/// Null when there is no setting of that path.
const SettingField* find_setting(std::string_view path);
/// The default in text format; empty where there is none.
std::string default_text(const SettingField& field);

/// The section that holds the field, created when absent.
google::protobuf::Message& section_of(proto::RunConfig& config, const SettingField& field);
const google::protobuf::Message& section_of(const proto::RunConfig& config,
                                            const SettingField& field);
bool is_set(const proto::RunConfig& config, const SettingField& field);
/// Value in text format; the default when unset.
std::string value_text(const proto::RunConfig& config, const SettingField& field);

/// "integer", "number", "string", ... for people.
std::string_view type_name(const google::protobuf::FieldDescriptor& field);
/// Legal values for people: ">= 0, < 1", "0, 24 or 32", "BF16 or FP32". Empty when anything goes.
std::string allowed_values(const google::protobuf::FieldDescriptor& field);
std::vector<std::string> enumerator_names(const google::protobuf::EnumDescriptor& enumeration);

/// Names of the fields of a message of the schema.
std::vector<std::string> field_names(const google::protobuf::Descriptor& message);

/// "did you mean X?" for the candidate nearest to `name` (edits, case ignored), or empty when none
/// is near.
std::string did_you_mean(std::string_view name, std::span<const std::string> candidates);
/// The same over all paths of settings and sections; a right name in a wrong section is near, too.
std::string did_you_mean_setting(std::string_view path);

/// The text in quotes, on one line, shortened: safe inside a message whatever the input was.
std::string quoted(std::string_view text);
/// A path as it stands when it could be one, else quoted.
std::string printable_path(std::string_view path);

}  // namespace flashshard::config
