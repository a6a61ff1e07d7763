// See schema.h. Nearest names by the Damerau-Levenshtein distance (optimal string alignment).
#include "runtime/config/schema.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cctype>
#include <optional>

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
      if (field->message_type() != nullptr) continue;
      fields.push_back({section->name() + "." + field->name(), section, field});
    }
  }
  return fields;
}

std::vector<RepeatedSetting> list_repeated() {
  std::vector<RepeatedSetting> list;
  const auto* root = proto::RunConfig::descriptor();
  for (int i = 0; i < root->field_count(); ++i) {
    const FieldDescriptor* section = root->field(i);
    for (int k = 0; k < section->message_type()->field_count(); ++k) {
      const FieldDescriptor* field = section->message_type()->field(k);
      const auto* message = field->message_type();
      if (message == nullptr) continue;
      RepeatedSetting repeated{section->name() + "." + field->name(), section, field, {}};
      for (int f = 0; f < message->field_count(); ++f) {
        const FieldDescriptor* inner = message->field(f);
        repeated.fields.push_back({repeated.path + "." + inner->name(), section, inner});
      }
      list.push_back(std::move(repeated));
    }
  }
  return list;
}

// "a", "a or b", "a, b or c".
std::string choices(const std::vector<std::string>& names) {
  if (names.size() < 2) return fmt::format("{}", fmt::join(names, ""));
  return fmt::format("{} or {}", fmt::join(names.begin(), names.end() - 1, ", "), names.back());
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

std::optional<size_t> nearest(std::string_view name, std::span<const std::string> candidates) {
  std::optional<size_t> found;
  if (name.size() > kQuotedLength) return found;
  size_t best = farthest(name) + 1;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const size_t distance = edit_distance(name, candidates[i]);
    if (distance < best) {
      best = distance;
      found = i;
    }
  }
  return found;
}

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

std::span<const RepeatedSetting> repeated_settings() {
  static const std::vector<RepeatedSetting> list = list_repeated();
  return list;
}

std::string value_text(const proto::RunConfig& config, const RepeatedSetting& repeated) {
  const auto& section = config.GetReflection()->GetMessage(config, repeated.section);
  const auto* reflection = section.GetReflection();
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  printer.SetSingleLineMode(true);
  std::string all;
  for (int i = 0; i < reflection->FieldSize(section, repeated.field); ++i) {
    std::string text;
    printer.PrintToString(reflection->GetRepeatedMessage(section, repeated.field, i), &text);
    while (text.ends_with(' ')) text.pop_back();
    all += fmt::format("{}{{ {} }}", all.empty() ? "" : " ", text);
  }
  return all;
}

std::string default_text(const SettingField& field) {
  if (!field.field->has_default_value()) return {};
  const auto* message = google::protobuf::MessageFactory::generated_factory()->GetPrototype(
      field.field->containing_type());
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  std::string text;
  printer.PrintFieldValueToString(*message, field.field, -1, &text);
  return text;
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
  names.reserve(static_cast<size_t>(enumeration.value_count()));
  for (int i = 0; i < enumeration.value_count(); ++i) names.push_back(enumeration.value(i)->name());
  return names;
}

std::string allowed_values(const FieldDescriptor& field) {
  if (field.enum_type() != nullptr) return choices(enumerator_names(*field.enum_type()));
  const proto::Setting& setting = field.options().GetExtension(proto::setting);
  if (setting.allowed_size() > 0) {
    std::vector<std::string> values;
    values.reserve(static_cast<size_t>(setting.allowed_size()));
    for (const int64_t value : setting.allowed()) values.push_back(std::to_string(value));
    return choices(values);
  }
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

std::vector<std::string> field_names(const google::protobuf::Descriptor& message) {
  std::vector<std::string> names;
  names.reserve(static_cast<size_t>(message.field_count()));
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return names;
}

std::string did_you_mean(std::string_view name, std::span<const std::string> candidates) {
  const auto found = nearest(name, candidates);
  return found ? fmt::format("did you mean {}?", candidates[*found]) : "";
}

std::string did_you_mean_setting(std::string_view path) {
  for (const RepeatedSetting& repeated : repeated_settings()) {
    if (path.starts_with(repeated.path + "."))
      return fmt::format("did you mean {}?", repeated.path);
  }

  const auto fields = setting_fields();
  // A name that exists, only not there, is what was meant, whatever the distance of the whole path.
  const auto elsewhere = std::ranges::find_if(
      fields, [&](const SettingField& field) { return field.field->name() == last_part(path); });
  if (elsewhere != fields.end()) return fmt::format("did you mean {}?", elsewhere->path);

  const auto* root = proto::RunConfig::descriptor();
  std::vector<std::string> paths;
  paths.reserve(fields.size() + static_cast<size_t>(root->field_count()));
  for (int i = 0; i < root->field_count(); ++i) paths.push_back(root->field(i)->name());
  for (const SettingField& field : fields) paths.push_back(field.path);
  for (const RepeatedSetting& repeated : repeated_settings()) paths.push_back(repeated.path);
  if (const auto found = nearest(path, paths)) {
    return fmt::format("did you mean {}?", paths[*found]);
  }

  std::vector<std::string> names;
  names.reserve(fields.size());
  for (const SettingField& field : fields) names.push_back(field.field->name());
  const auto found = nearest(last_part(path), names);
  return found ? fmt::format("did you mean {}?", fields[*found].path) : "";
}

std::string printable_path(std::string_view path) {
  const bool plain = path.size() <= kQuotedLength && std::ranges::all_of(path, [](char c) {
                       return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' ||
                              c == '[' || c == ']';
                     });
  return plain ? std::string(path) : quoted(path);
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
