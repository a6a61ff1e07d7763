// See schema.h. Nearest names by the Damerau-Levenshtein distance (optimal string alignment).
#include "runtime/config/schema.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cctype>

namespace flashshard::config {
namespace {

using google::protobuf::FieldDescriptor;

constexpr size_t kQuotedLength = 80;

std::vector<SettingField> list_fields() {
  std::vector<SettingField> fields;
  const auto* root = proto::RunConfig::descriptor();
  for (int i = 0; i < root->field_count(); ++i) {
    const FieldDescriptor* section = root->field(i);
    for (int k = 0; k < section->message_type()->field_count(); ++k) {
      const FieldDescriptor* field = section->message_type()->field(k);
      fields.push_back({section->name() + "." + field->name(), section, field});
    }
  }
  return fields;
}

char lower(char c) { return static_cast<char>(std::tolower(static_cast<unsigned char>(c))); }

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = lower(a[i - 1]) == lower(b[j - 1]);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (same ? 0 : 1)});
      const bool swapped = i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) &&
                           lower(a[i - 2]) == lower(b[j - 1]);
      if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

// A suggestion further away than this is no help.
size_t farthest(std::string_view name) { return std::max<size_t>(2, name.size() / 3); }

std::string_view last_part(std::string_view path) { return path.substr(path.rfind('.') + 1); }

}  // namespace

std::span<const SettingField> setting_fields() {
  static const std::vector<SettingField> fields = list_fields();
  return fields;
}

const SettingField* find_setting(std::string_view path) {
  const auto fields = setting_fields();
  const auto found = std::ranges::find(fields, path, &SettingField::path);
  return found == fields.end() ? nullptr : &*found;
}

google::protobuf::Message& section_of(proto::RunConfig& config, const SettingField& field) {
  return *config.GetReflection()->MutableMessage(&config, field.section);
}

const google::protobuf::Message& section_of(const proto::RunConfig& config,
                                            const SettingField& field) {
  return config.GetReflection()->GetMessage(config, field.section);
}

bool is_set(const proto::RunConfig& config, const SettingField& field) {
  const auto& section = section_of(config, field);
  return section.GetReflection()->HasField(section, field.field);
}

std::string value_text(const proto::RunConfig& config, const SettingField& field) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  std::string text;
  printer.PrintFieldValueToString(section_of(config, field), field.field, -1, &text);
  return text;
}

std::string_view type_name(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64:
    case FieldDescriptor::CPPTYPE_UINT64:
      return "integer";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "number";
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return "name";
    default:
      return "string";
  }
}

std::vector<std::string> enumerator_names(const google::protobuf::EnumDescriptor& enumeration) {
  std::vector<std::string> names;
  for (int i = 0; i < enumeration.value_count(); ++i) names.push_back(enumeration.value(i)->name());
  return names;
}

std::string allowed_values(const FieldDescriptor& field) {
  if (field.enum_type() != nullptr) {
    return fmt::format("{}", fmt::join(enumerator_names(*field.enum_type()), " or "));
  }
  const proto::Setting& setting = field.options().GetExtension(proto::setting);
  if (setting.allowed_size() > 0) return fmt::format("{}", fmt::join(setting.allowed(), " or "));
  std::vector<std::string> bounds;
  if (setting.has_minimum()) bounds.push_back(fmt::format(">= {}", setting.minimum()));
  if (setting.has_above()) bounds.push_back(fmt::format("> {}", setting.above()));
  if (setting.has_maximum()) bounds.push_back(fmt::format("<= {}", setting.maximum()));
  if (setting.has_below()) bounds.push_back(fmt::format("< {}", setting.below()));
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_UINT64 && bounds.empty()) {
    bounds.push_back(">= 0");
  }
  return fmt::format("{}", fmt::join(bounds, ", "));
}

std::string did_you_mean(std::string_view name, std::span<const std::string> candidates) {
  size_t best = farthest(name) + 1;
  const std::string* nearest = nullptr;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(name, candidate);
    if (distance < best) {
      best = distance;
      nearest = &candidate;
    }
  }
  return nearest == nullptr ? "" : fmt::format("did you mean {}?", *nearest);
}

std::string did_you_mean_setting(std::string_view path) {
  if (path.size() > kQuotedLength) return "";
  // A name that exists, only not there, is what was meant, whatever the distance of the whole path.
  for (const SettingField& field : setting_fields()) {
    if (field.field->name() == last_part(path)) return fmt::format("did you mean {}?", field.path);
  }
  std::vector<std::string> candidates;
  const auto* root = proto::RunConfig::descriptor();
  for (int i = 0; i < root->field_count(); ++i) candidates.push_back(root->field(i)->name());
  for (const SettingField& field : setting_fields()) candidates.push_back(field.path);
  if (const std::string whole = did_you_mean(path, candidates); !whole.empty()) return whole;

  std::vector<std::string> names;
  for (const SettingField& field : setting_fields()) names.push_back(field.field->name());
  for (const SettingField& field : setting_fields()) {
    const std::string& name = field.field->name();
    if (did_you_mean(last_part(path), names) == fmt::format("did you mean {}?", name)) {
      return fmt::format("did you mean {}?", field.path);
    }
  }
  return "";
}

std::string quoted(std::string_view text) {
  std::string line = "\"";
  for (const char c : text.substr(0, kQuotedLength)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f) {
      line += fmt::format("\\x{:02x}", byte);
    } else {
      line += c;
    }
  }
  return line + (text.size() > kQuotedLength ? "...\"" : "\"");
}

}  // namespace flashshard::config
