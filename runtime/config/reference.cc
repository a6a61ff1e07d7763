// See reference.h.
#include "runtime/config/reference.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "kernels/error.h"
#include "optim/legality.h"
#include "runtime/config/presets.h"
#include "runtime/config/schema.h"
#include "runtime/config/validation.h"

namespace flashshard {
namespace {

using config::default_text;
using config::SettingField;

constexpr size_t kHelpColumns = 100;

constexpr std::string_view kIntroduction =
    R"(<!-- Made from proto/run.proto by `flashshard_config_reference docs/configuration.md`; change it there. -->
# Configuration

A run is described by one file in protobuf text format, such as
[launch/configs/quickstart.textproto](../launch/configs/quickstart.textproto):

```
flashshard train --config launch/configs/quickstart.textproto --set train.steps=50 --set optimizer.learning_rate=1e-3
```

- `--set path=value` overrides one field; it may be repeated and the last one wins. Quotes around a string are optional.
- A repeated field stands as often as there are groups: `group { pattern: "*norm*" weight_decay: 0 }`. `--set 'optimizer.group={ ... }'` adds one, an empty value removes those before it.
- Precedence, strongest first: `--set`, the file, the model's preset, defaults.
- An unknown field or name and a value out of range are refused with the field's path, the place it was set at and the
  nearest right name; the exit code is 2.
- `run.dir/config.textproto` holds the configuration of a run fully resolved; it can be used as a configuration again.
- *Resume*: "fixed" means that a resumed run must have the value its checkpoint was made with; every other setting may
  change.
)";

std::string wrapped(std::string_view text, size_t indent) {
  const std::string margin(indent, ' ');
  std::string lines;
  std::string line = margin;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    if (line.size() + 1 + end > kHelpColumns && line.size() > indent) {
      lines += line + "\n";
      line = margin;
    }
    if (line.size() > indent) line += ' ';
    line += text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines + line + "\n";
}

constexpr std::string_view kFromSection =
    "the section's";  // the default of a group's field without one

std::string type_and_unit(const SettingField& field) {
  std::string text(config::type_name(*field.field));
  if (field.setting().has_unit()) text += ", " + field.setting().unit();
  return text;
}

std::string_view section_doc(const SettingField& field) {
  return field.section->options().GetExtension(proto::setting).doc();
}

std::string help_of(const SettingField& field) {
  const std::string allowed = config::allowed_values(*field.field);
  const std::string value = field.setting().required()         ? "required"
                            : field.field->has_default_value() ? "default " + default_text(field)
                                                               : std::string(kFromSection);
  return fmt::format("  {} ({}; {}{}{})\n", field.path, type_and_unit(field),
                     allowed.empty() ? "" : allowed + "; ", value,
                     field.setting().fixed_at_resume() ? "; fixed at a resume" : "") +
         wrapped(field.setting().doc(), 6);
}

std::string markdown_of(const SettingField& field) {
  const auto code = [](const std::string& text) {
    return text.empty() ? text : fmt::format("`{}`", text);
  };
  const std::string value = field.setting().required()         ? "**required**"
                            : field.field->has_default_value() ? code(default_text(field))
                                                               : std::string(kFromSection);
  std::string meaning = field.setting().doc();
  if (const auto* enumeration = field.field->enum_type()) {
    for (int i = 0; i < enumeration->value_count(); ++i) {
      const auto* choice = enumeration->value(i);
      meaning += fmt::format("<br>`{}`: {}.", choice->name(),
                             choice->options().GetExtension(proto::meaning));
    }
  }
  return fmt::format("| `{}` | {} | {} | {} | {} | {} |\n", field.path, type_and_unit(field), value,
                     code(config::allowed_values(*field.field)),
                     field.setting().fixed_at_resume() ? "fixed" : "", meaning);
}

std::string_view table_head() {
  return "\n| field | type | default | allowed | resume | meaning |\n"
         "| --- | --- | --- | --- | --- | --- |\n";
}

/// The fields that a preset sets, as "name: value".
std::string fields_of(const proto::ModelPreset& preset) {
  proto::RunConfig config;
  *config.mutable_model() = preset.model();
  std::string text;
  for (const SettingField& field : config::setting_fields()) {
    if (field.section->name() != "model" || !config::is_set(config, field)) continue;
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", field.field->name(),
                        config::value_text(config, field));
  }
  return text;
}

std::string presets_markdown() {
  std::string text =
      "\n## Presets of `model.preset`\n\n"
      "Parameters are counted over the 256 bytes where a preset leaves `vocab_size` to the "
      "data.\n\n"
      "| name | for | parameters | sets |\n| --- | --- | --- | --- |\n";
  for (const auto& preset : config::model_presets()) {
    text += fmt::format("| `{}` | {} | {} | {} |\n", preset.name(), preset.purpose(),
                        preset.parameters(), fields_of(preset));
  }
  return text;
}

std::string presets_help() {
  std::string text = "\npresets: values of model.preset, with the parameters they make\n";
  for (const auto& preset : config::model_presets()) {
    text += fmt::format("  {} ({} parameters): {}\n", preset.name(), preset.parameters(),
                        preset.purpose()) +
            wrapped(fields_of(preset), 6);
  }
  return text;
}

}  // namespace

std::string field_help() {
  std::string text;
  const google::protobuf::FieldDescriptor* section = nullptr;
  for (const SettingField& field : config::setting_fields()) {
    if (field.section != section) {
      section = field.section;
      text +=
          fmt::format("{}{}: {}\n", text.empty() ? "" : "\n", section->name(), section_doc(field));
    }
    text += help_of(field);
  }
  for (const auto& repeated : config::repeated_settings()) {
    text += fmt::format("\n{}, repeated:\n", repeated.path) + wrapped(repeated.doc(), 2);
    for (const SettingField& field : repeated.fields) text += help_of(field);
  }
  return text + presets_help();
}

std::string configuration_markdown() {
  std::string text(kIntroduction);
  const google::protobuf::FieldDescriptor* section = nullptr;
  for (const SettingField& field : config::setting_fields()) {
    if (field.section != section) {
      section = field.section;
      text += fmt::format("\n## {}\n\n{}\n", section->name(), section_doc(field));
      text += table_head();
    }
    text += markdown_of(field);
  }
  for (const auto& repeated : config::repeated_settings()) {
    text += fmt::format("\n## {}, repeated\n\n{}\n", repeated.path, repeated.doc());
    text += table_head();
    for (const SettingField& field : repeated.fields) text += markdown_of(field);
  }
  text += presets_markdown();
  text += "\n## Rules between fields\n\n";
  for (const auto& rule : config::field_rules()) text += fmt::format("- {}\n", rule.statement);
  text +=
      "- What the settings of `parallelism` refuse together: "
      "[sharding.md](sharding.md#what-can-be-combined).\n";
  return text;
}

std::string with_legality_tables(std::string page) {
  constexpr std::string_view kBegin = "<!-- legality -->\n", kEnd = "<!-- end of legality -->";
  const size_t begin = page.find(kBegin), end = page.find(kEnd);
  if (begin == std::string::npos || end == std::string::npos || end < begin) {
    throw Error(ExitCode::kInternal,
                "the page has no place for the tables of what can be combined");
  }
  const size_t first = begin + kBegin.size();
  return page.replace(first, end - first, legality_markdown());
}

}  // namespace flashshard
