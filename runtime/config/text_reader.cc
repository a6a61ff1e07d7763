// See text_reader.h. Parsing itself is protobuf's; a walk over the tokens beforehand finds names
// that do not exist, since protobuf reports them without their path and at the token after them.
#include "runtime/config/text_reader.h"

#include <fmt/format.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <vector>

#include "kernels/error.h"
#include "runtime/config/run_config.h"
#include "runtime/config/schema.h"

namespace flashshard::config {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::io::Tokenizer;

constexpr int kDeepestNesting = 8;  // of messages; the schema has three

constexpr size_t kLongestReport =
    200;  // characters of a parser's message, which may quote the file

// Line and column count from 0, as protobuf's do; people count from 1.
struct Position {
  int line = 0;
  int column = 0;
  bool operator<(const Position& other) const {
    return line < other.line || (line == other.line && column < other.column);
  }
};

std::string place(const std::string& source, Position position) {
  return fmt::format("{}:{}:{}", source, position.line + 1, position.column + 1);
}

/// Keeps the first error of a parse.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column,
                const std::string& message) override {
    if (!message_) {
      message_ = message;
      position_ = {std::max(line, 0), std::max(column, 0)};
    }
  }
  const std::optional<std::string>& message() const { return message_; }
  Position position() const { return position_; }

 private:
  std::optional<std::string> message_;
  Position position_;
};

/// Walks over the tokens of a text-format file: refuses unknown names and notes where each field
/// stands. It stops without a word at anything that is not well formed: that is the parser's to
/// report.
class NameCheck {
 public:
  NameCheck(std::string_view text, std::string source)
      : source_(std::move(source)),
        stream_(text.data(), static_cast<int>(text.size())),
        tokenizer_(&stream_, &ignored_) {
    tokenizer_.set_comment_style(Tokenizer::SH_COMMENT_STYLE);
    tokenizer_.set_allow_f_after_float(true);
    tokenizer_.set_require_space_after_number(false);
    tokenizer_.set_allow_multiline_strings(true);
  }

  void run() {
    scopes_.push_back({"", proto::RunConfig::descriptor()});
    tokenizer_.Next();
    while (token().type != Tokenizer::TYPE_END && step()) {
    }
  }

  struct Named {
    Position position;
    std::string path;
  };
  /// Fields in the order of the file.
  const std::vector<Named>& fields() const { return fields_; }

 private:
  struct Scope {
    std::string path;
    const Descriptor* type;
    const FieldDescriptor* list = nullptr;  // the field whose [ ... ] this message is one of
  };
  static constexpr size_t kSectionDepth = 2;  // scopes that are open inside a section

  const Tokenizer::Token& token() { return tokenizer_.current(); }
  bool at(std::string_view symbol) { return token().text == symbol; }

  bool step() {
    if (at("}") || at(">")) {
      if (scopes_.size() == 1) return false;
      const FieldDescriptor* list = scopes_.back().list;
      scopes_.pop_back();
      tokenizer_.Next();
      return list == nullptr || next_of_list(*list);
    }
    if (at(",") || at(";")) return tokenizer_.Next();
    if (token().type != Tokenizer::TYPE_IDENTIFIER) return false;
    const FieldDescriptor* field = name();
    if (at(":")) tokenizer_.Next();
    if (at("[") && field->is_repeated() && field->message_type() != nullptr) {
      return next_of_list(*field);
    }
    if (at("{") || at("<")) {
      if (field->message_type() == nullptr) return false;
      scopes_.push_back({fields_.back().path, field->message_type()});
      return tokenizer_.Next();
    }
    return field->message_type() == nullptr && value(*field);
  }

  /// At the "[" of a list of messages, or behind one of them: into the next, or out of the list.
  bool next_of_list(const FieldDescriptor& field) {
    const bool first = at("[");
    if (first && tokenizer_.Next() && at("]")) {  // none at all
      fields_.pop_back();
      --repetitions_[path_of(field.name())];
    }
    if (at("]")) return tokenizer_.Next();
    if (!first && !(at(",") && tokenizer_.Next())) return false;
    if (!at("{") && !at("<")) return false;
    if (!first) note(field, {token().line, token().column});
    scopes_.push_back({fields_.back().path, field.message_type(), &field});
    return tokenizer_.Next();
  }

  const FieldDescriptor* name() {
    const Scope& scope = scopes_.back();
    const Position position = {token().line, token().column};
    const FieldDescriptor* field = scope.type->FindFieldByName(token().text);
    if (field == nullptr) {
      const std::string path = path_of(token().text);
      const bool in_group = scopes_.size() > kSectionDepth;
      throw Error(ExitCode::kUsage, fmt::format("unknown field {}", printable_path(path)),
                  place(source_, position),
                  in_group ? did_you_mean(token().text, field_names(*scope.type))
                           : did_you_mean_setting(path));
    }
    note(*field, position);
    tokenizer_.Next();
    return field;
  }

  std::string path_of(std::string_view name) const {
    const std::string& scope = scopes_.back().path;
    return scope.empty() ? std::string(name) : fmt::format("{}.{}", scope, name);
  }

  void note(const FieldDescriptor& field, Position position) {
    std::string path = path_of(field.name());
    if (field.is_repeated()) path += fmt::format("[{}]", repetitions_[path]++);
    fields_.push_back({position, std::move(path)});
  }

  bool value(const FieldDescriptor& field) {
    if (field.enum_type() != nullptr && token().type == Tokenizer::TYPE_IDENTIFIER &&
        field.enum_type()->FindValueByName(token().text) == nullptr) {
      throw Error(ExitCode::kUsage,
                  fmt::format("unknown value {} of {}, allowed: {}", printable_path(token().text),
                              fields_.back().path, allowed_values(field)),
                  place(source_, {token().line, token().column}),
                  did_you_mean(token().text, enumerator_names(*field.enum_type())));
    }
    if (at("[")) return false;
    if (at("-")) tokenizer_.Next();
    const bool string = token().type == Tokenizer::TYPE_STRING;
    tokenizer_.Next();
    while (string && token().type == Tokenizer::TYPE_STRING) tokenizer_.Next();
    return true;
  }

  std::string source_;
  FirstError ignored_;
  google::protobuf::io::ArrayInputStream stream_;
  Tokenizer tokenizer_;
  std::vector<Scope> scopes_;
  std::map<std::string, int> repetitions_;  // of repeated fields so far, by path
  std::vector<Named> fields_;
};

// Length of the UTF-8 sequence at the start of `text`, 0 when it is none (RFC 3629, overlong forms
// and surrogates refused).
size_t utf8_sequence(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const bool overlong = (first == 0xe0 && byte(1) < 0xa0) || (first == 0xf0 && byte(1) < 0x90);
  const bool surrogate = first == 0xed && byte(1) > 0x9f;
  const bool beyond = first == 0xf4 && byte(1) > 0x8f;
  return overlong || surrogate || beyond ? 0 : length;
}

bool legal_control(char c) { return c == '\n' || c == '\r' || c == '\t'; }

template <typename Number>
std::optional<Number> number(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string_view without_quotes(std::string_view text) {
  const bool quotes = text.size() >= 2 && (text.front() == '"' || text.front() == '\'') &&
                      text.back() == text.front();
  return quotes ? text.substr(1, text.size() - 2) : text;
}

// False when `text` is no value of the field's type.
bool assign(google::protobuf::Message& section, const FieldDescriptor& field,
            std::string_view text) {
  const auto* reflection = section.GetReflection();
  const auto store = [&](auto value, auto setter) {
    if (value) (reflection->*setter)(&section, &field, *value);
    return value.has_value();
  };
  using google::protobuf::Reflection;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return store(number<int32_t>(text), &Reflection::SetInt32);
    case FieldDescriptor::CPPTYPE_INT64:
      return store(number<int64_t>(text), &Reflection::SetInt64);
    case FieldDescriptor::CPPTYPE_UINT64:
      return store(number<uint64_t>(text), &Reflection::SetUInt64);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return store(number<double>(text), &Reflection::SetDouble);
    case FieldDescriptor::CPPTYPE_BOOL:
      if (text != "true" && text != "false") return false;
      reflection->SetBool(&section, &field, text == "true");
      return true;
    case FieldDescriptor::CPPTYPE_ENUM: {
      const auto* value = field.enum_type()->FindValueByName(std::string(text));
      if (value != nullptr) reflection->SetEnum(&section, &field, value);
      return value != nullptr;
    }
    default:
      reflection->SetString(&section, &field, std::string(without_quotes(text)));
      return true;
  }
}

}  // namespace

std::string read_config_file(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw Error(ExitCode::kUsage, "the configuration is a folder, not a file", path);
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw Error(ExitCode::kUsage,
                fmt::format("cannot read the configuration: {}", std::strerror(errno)), path,
                "configurations that come with FlashShard are in launch/configs");
  }
  std::string text(kMaximumConfigBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) throw Error(ExitCode::kUsage, "cannot read the configuration", path);
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

void require_text(std::string_view text, const std::string& where, bool multiline) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if ((byte < 0x20 && !(multiline && legal_control(text[i]))) || byte == 0x7f) {
      throw Error(ExitCode::kUsage,
                  fmt::format("control character 0x{:02x} at byte {}: this is no text", byte, i),
                  where);
    }
    const size_t length = utf8_sequence(text.substr(i));
    if (length == 0) {
      throw Error(ExitCode::kUsage, fmt::format("byte {} (0x{:02x}) is not UTF-8", i, byte), where);
    }
    i += length;
  }
}

void read_text(std::string_view text, const std::string& source, proto::RunConfig& config,
               Origins& origins) {
  if (text.size() > kMaximumConfigBytes) {
    throw Error(ExitCode::kUsage,
                fmt::format("a configuration is at most {} bytes", kMaximumConfigBytes), source,
                "is this the right file?");
  }
  require_text(text, source, true);
  NameCheck names(text, source);
  names.run();

  google::protobuf::TextFormat::Parser parser;
  FirstError error;
  parser.RecordErrorsTo(&error);
  parser.SetRecursionLimit(kDeepestNesting);
  if (!parser.ParseFromString(std::string(text), &config)) {
    std::string near;
    for (const auto& field : names.fields()) {
      if (field.position < error.position()) near = ", near " + field.path;
    }
    throw Error(
        ExitCode::kUsage,
        fmt::format("cannot read the configuration: {}{}",
                    error.message().value_or("not in text format").substr(0, kLongestReport), near),
        place(source, error.position()));
  }
  for (const auto& field : names.fields()) {
    origins[field.path] = place(source, field.position);
  }
}

namespace {

/// Refuses text that goes on behind its message's closing brace: it would be lost.
void require_nothing_else(const RepeatedSetting& repeated, proto::RunConfig read,
                          std::string_view text) {
  const auto* reflection = read.GetReflection();
  auto& section = *reflection->MutableMessage(&read, repeated.section);
  section.GetReflection()->ClearField(&section, repeated.field);
  const bool more_in_section = section.ByteSizeLong() > 0;
  reflection->ClearField(&read, repeated.section);
  if (!more_in_section && read.ByteSizeLong() == 0) return;
  throw Error(ExitCode::kUsage,
              fmt::format("{} takes one message in braces, not {}", repeated.path, quoted(text)),
              "--set", "close the brace at the end, or give other fields a --set of their own");
}

/// --set section.name=TEXT adds one message in text format; without TEXT all of them go.
void apply_repeated(const RepeatedSetting& repeated, std::string_view text,
                    proto::RunConfig& config, Origins& origins) {
  auto& section = *config.GetReflection()->MutableMessage(&config, repeated.section);
  const auto* reflection = section.GetReflection();
  if (text.empty()) return reflection->ClearField(&section, repeated.field);
  // Read as the file would have it, so that a wrong name is found in the same way.
  proto::RunConfig added;
  Origins ignored;
  read_text(fmt::format("{} {{ {} {} }}", repeated.section->name(), repeated.field->name(), text),
            "--set " + repeated.path, added, ignored);
  require_nothing_else(repeated, added, text);
  const auto& from = added.GetReflection()->GetMessage(added, repeated.section);
  for (int i = 0; i < reflection->FieldSize(from, repeated.field); ++i) {
    const std::string path =
        fmt::format("{}[{}]", repeated.path, reflection->FieldSize(section, repeated.field));
    reflection->AddMessage(&section, repeated.field)
        ->CopyFrom(reflection->GetRepeatedMessage(from, repeated.field, i));
    for (const SettingField& field : repeated.fields) {
      origins[path + "." + field.field->name()] = "--set";
    }
  }
}

}  // namespace

void apply_override(std::string_view assignment, proto::RunConfig& config, Origins& origins) {
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    throw Error(ExitCode::kUsage, "--set needs path=value, not " + quoted(assignment), {},
                "for example --set train.steps=100");
  }
  const std::string_view path = assignment.substr(0, equals);
  const std::string_view text = assignment.substr(equals + 1);
  for (const RepeatedSetting& repeated : repeated_settings()) {
    if (repeated.path == path) return apply_repeated(repeated, text, config, origins);
  }
  const SettingField* found = find_setting(path);
  if (found == nullptr) {
    const bool section = proto::RunConfig::descriptor()->FindFieldByName(std::string(path));
    throw Error(ExitCode::kUsage,
                section ? fmt::format("{} is a section, --set needs one of its fields", path)
                        : fmt::format("unknown field {}", printable_path(path)),
                "--set", section ? "" : did_you_mean_setting(path));
  }
  const FieldDescriptor& field = *found->field;
  if (!assign(section_of(config, *found), field, text)) {
    const std::string allowed = allowed_values(field);
    throw Error(ExitCode::kUsage,
                fmt::format("{} is {}, allowed: {}{}{}", found->path, quoted(text),
                            type_name(field), allowed.empty() ? "" : " ", allowed),
                "--set",
                field.enum_type() == nullptr
                    ? ""
                    : did_you_mean(text, enumerator_names(*field.enum_type())));
  }
  origins[found->path] = "--set";
}

}  // namespace flashshard::config
