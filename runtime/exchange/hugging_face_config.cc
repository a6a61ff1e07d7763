#include "runtime/exchange/hugging_face_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "kernels/error.h"
#include "runtime/exchange/json_text.h"

namespace flashshard::exchange {
namespace {

using nlohmann::json;

struct Family {
  std::string_view model_type;
  std::string_view architecture;
  bool qkv_bias;
  int64_t default_positions;  // of a config.json that leaves them out
};
constexpr std::array<Family, 2> kFamilies = {
    {{"llama", "LlamaForCausalLM", false, 2048}, {"qwen2", "Qwen2ForCausalLM", true, 32768}}};

/// Fields that say nothing about what the model computes.
constexpr std::array kNeutralFields = {
    "_name_or_path", "architectures",  "torch_dtype",      "dtype",        "transformers_version",
    "use_cache",     "bos_token_id",   "pad_token_id",     "eos_token_id", "pretraining_tp",
    "model_type",    "sliding_window", "max_window_layers"};

/// Fields that can have one value only, where they stand at all.
struct FixedField {
  std::string_view name;
  std::string_view value;  // JSON
  std::string_view why;
};
constexpr std::array kFixedFields = {
    FixedField{"hidden_act", "\"silu\"", "the feed-forward layer is SwiGLU"},
    FixedField{"attention_bias", "false", "only q, k and v of Qwen2 have biases"},
    FixedField{"mlp_bias", "false", "the feed-forward layer has no biases"},
    FixedField{"use_sliding_window", "false", "attention sees the whole sequence"},
    FixedField{"attention_dropout", "0.0", "there is no dropout"},
    FixedField{"partial_rotary_factor", "1.0", "a head is rotated whole"},
    FixedField{"is_encoder_decoder", "false", "the model is a decoder"},
    FixedField{"add_cross_attention", "false", "the model is a decoder"},
    FixedField{"quantization_config", "null", "quantised weights are not read"}};

/// The members of an object, with those that were asked for ticked off.
class Fields {
 public:
  Fields(const json& object, std::string where, std::string prefix = {})
      : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {}

  /// The member, or null when it is absent or null.
  const json& get(std::string_view name) {
    static const json kNull;
    seen_.emplace(name);
    const auto found = object_.find(name);
    return found == object_.end() ? kNull : *found;
  }
  bool has(std::string_view name) { return !get(name).is_null(); }

  int64_t integer(std::string_view name, std::optional<int64_t> otherwise = {}) {
    const json& value = get(name);
    if (value.is_null() && otherwise) return *otherwise;
    if (!value.is_number_integer() || value > std::numeric_limits<int32_t>::max() || value < 0) {
      fail(name, value, "a whole number from 0 to 2147483647");
    }
    return value.get<int64_t>();
  }
  double number(std::string_view name, std::optional<double> otherwise = {}) {
    const json& value = get(name);
    if (value.is_null() && otherwise) return *otherwise;
    if (!value.is_number()) fail(name, value, "a number");
    return value.get<double>();
  }
  bool boolean(std::string_view name, bool otherwise) {
    const json& value = get(name);
    if (value.is_null()) return otherwise;
    if (!value.is_boolean()) fail(name, value, "true or false");
    return value.get<bool>();
  }
  std::string text(std::string_view name, std::optional<std::string> otherwise = {}) {
    const json& value = get(name);
    if (value.is_null() && otherwise) return *otherwise;
    if (!value.is_string()) fail(name, value, "a text");
    return value.get<std::string>();
  }

  std::vector<std::string> left_over() const {
    std::vector<std::string> names;
    for (const auto& [name, value] : object_.items()) {
      if (!value.is_null() && !seen_.contains(name)) names.push_back(prefix_ + name);
    }
    return names;
  }
  const std::string& where() const { return where_; }

  [[noreturn]] void fail(std::string_view name, const json& value, std::string_view wants) const {
    constexpr size_t kMost = 120;
    std::string shown = value.dump(-1, ' ', true, json::error_handler_t::replace);
    if (shown.size() > kMost) shown = shown.substr(0, kMost) + "...";
    const std::string is = value.is_null() ? "is missing" : "is " + shown;
    throw Error(ExitCode::kCheckpoint, fmt::format("{}{} {}, wants {}", prefix_, name, is, wants),
                where_);
  }

 private:
  const json& object_;
  std::string where_;
  std::string prefix_;
  std::set<std::string, std::less<>> seen_;
};

const Family& family_of(Fields& fields) {
  const std::string type = fields.text("model_type");
  const auto family = std::ranges::find(kFamilies, type, &Family::model_type);
  if (family == kFamilies.end()) {
    fields.fail("model_type", type, "\"llama\" or \"qwen2\": other architectures are not read");
  }
  const json& architectures = fields.get("architectures");
  if (!architectures.is_null() && architectures != json::array({family->architecture})) {
    fields.fail("architectures", architectures, fmt::format("[\"{}\"]", family->architecture));
  }
  return *family;
}

void check_fixed(Fields& fields) {
  for (const FixedField& fixed : kFixedFields) {
    const json& value = fields.get(fixed.name);
    if (value.is_null() || value == json::parse(fixed.value)) continue;
    fields.fail(fixed.name, value, fmt::format("{}: {}", fixed.value, fixed.why));
  }
  const json& types = fields.get("layer_types");
  const bool full =
      types.is_null() || (types.is_array() && std::ranges::all_of(types, [](const auto& type) {
                            return type == "full_attention";
                          }));
  if (!full) {
    fields.fail("layer_types", types,
                "\"full_attention\" of every layer: attention sees the whole sequence");
  }
}

/// `rope_parameters` as transformers 5 writes it, or `rope_theta` and `rope_scaling` before that.
void read_rope(Fields& fields, LlamaOptions& options, std::vector<std::string>& unknown) {
  const bool one_object = fields.has("rope_parameters");
  if (one_object && fields.has("rope_scaling")) {
    fields.fail("rope_scaling", fields.get("rope_scaling"),
                "null beside rope_parameters, which stands in its place");
  }
  const std::string name = one_object ? "rope_parameters" : "rope_scaling";
  const json& object = fields.get(name);
  options.rope_theta = fields.number("rope_theta", 10000.0);
  if (object.is_null()) return;
  if (!object.is_object()) fields.fail(name, object, "an object");
  Fields rope(object, fields.where(), name + ".");
  const double theta = rope.number("rope_theta", options.rope_theta);
  if (fields.has("rope_theta") && theta != options.rope_theta) {
    rope.fail("rope_theta", rope.get("rope_theta"),
              fmt::format("{} as rope_theta has it", fields.get("rope_theta").dump()));
  }
  options.rope_theta = theta;
  const std::string_view kind = rope.has("rope_type") || !rope.has("type") ? "rope_type" : "type";
  const std::string type =
      rope.text(kind, one_object ? std::optional<std::string>("default") : std::nullopt);
  if (const json& part = rope.get("partial_rotary_factor"); !part.is_null() && part != 1.0) {
    rope.fail("partial_rotary_factor", part, "1.0: a head is rotated whole");
  }
  RopeScaling& scaling = options.rope_scaling;
  if (type == "llama3") {
    scaling.kind = RopeScaling::Kind::kLlama3;
    scaling.factor = rope.number("factor");
    scaling.low_frequency_factor = rope.number("low_freq_factor");
    scaling.high_frequency_factor = rope.number("high_freq_factor");
    scaling.original_positions = rope.integer("original_max_position_embeddings");
  } else if (type != "default") {
    rope.fail(kind, type, "\"default\" or \"llama3\"");
  }
  std::ranges::move(rope.left_over(), std::back_inserter(unknown));
}

void read_shape(Fields& fields, const Family& family, LlamaOptions& options) {
  options.vocab_size = fields.integer("vocab_size");
  options.hidden_size = fields.integer("hidden_size");
  options.layers = static_cast<int>(fields.integer("num_hidden_layers"));
  options.heads = static_cast<int>(fields.integer("num_attention_heads"));
  options.kv_heads = static_cast<int>(fields.integer("num_key_value_heads", options.heads));
  if (options.heads == 0) fields.fail("num_attention_heads", 0, "at least 1");
  options.head_dim =
      static_cast<int>(fields.integer("head_dim", options.hidden_size / options.heads));
  options.feed_forward_size = fields.integer("intermediate_size");
  options.max_position_embeddings =
      fields.integer("max_position_embeddings", family.default_positions);
  options.norm_epsilon = fields.number("rms_norm_eps", 1e-6);
  options.init_std = fields.number("initializer_range", 0.02);
  options.tied_embeddings = fields.boolean("tie_word_embeddings", false);
  options.qkv_bias = family.qkv_bias;
}

nlohmann::ordered_json rope_scaling_of(const RopeScaling& scaling) {
  if (scaling.kind == RopeScaling::Kind::kNone) return nullptr;
  return {{"rope_type", "llama3"},
          {"factor", scaling.factor},
          {"low_freq_factor", scaling.low_frequency_factor},
          {"high_freq_factor", scaling.high_frequency_factor},
          {"original_max_position_embeddings", scaling.original_positions}};
}

}  // namespace

HuggingFaceConfig read_hugging_face_config(std::string_view text, const std::string& where) {
  const auto object = parse_json(text);
  if (!object || !object->is_object()) {
    throw Error(ExitCode::kCheckpoint, "it is no JSON object", where);
  }
  Fields fields(*object, where);
  HuggingFaceConfig config;
  const Family& family = family_of(fields);
  check_fixed(fields);
  read_shape(fields, family, config.model);
  read_rope(fields, config.model, config.unknown_fields);
  for (const char* neutral : kNeutralFields) fields.get(neutral);
  std::ranges::move(fields.left_over(), std::back_inserter(config.unknown_fields));
  return config;
}

HuggingFaceConfigFiles write_hugging_face_config(const HuggingFaceConfigWrite& write) {
  const LlamaOptions& model = write.model;
  const Family& family = kFamilies[model.qkv_bias ? 1 : 0];
  const auto id_or_null = [](int32_t token) {
    return token >= 0 ? nlohmann::ordered_json(token) : nlohmann::ordered_json(nullptr);
  };
  const nlohmann::ordered_json beginning = id_or_null(write.beginning_of_text);
  const nlohmann::ordered_json end = id_or_null(write.end_of_document);
  nlohmann::ordered_json json = {
      {"architectures", {family.architecture}},
      {"model_type", family.model_type},
      {"torch_dtype", write.weights == DType::kBF16 ? "bfloat16" : "float32"},
      {"vocab_size", model.vocab_size},
      {"hidden_size", model.hidden_size},
      {"intermediate_size", model.feed_forward_size},
      {"num_hidden_layers", model.layers},
      {"num_attention_heads", model.heads},
      {"num_key_value_heads", model.kv_heads},
      {"head_dim", model.head_dim},
      {"hidden_act", "silu"},
      {"max_position_embeddings",
       model.max_position_embeddings > 0 ? model.max_position_embeddings : write.sequence_length},
      {"initializer_range", model.init_std},
      {"rms_norm_eps", model.norm_epsilon},
      {"rope_theta", model.rope_theta},
      {"rope_scaling", rope_scaling_of(model.rope_scaling)},
      {"attention_dropout", 0.0},
      {"tie_word_embeddings", model.tied_embeddings},
      {"use_cache", true},
      {"bos_token_id", beginning},
      {"eos_token_id", end}};
  if (model.qkv_bias) {
    json["use_sliding_window"] = false;
  } else {
    json["attention_bias"] = false;
    json["mlp_bias"] = false;
  }
  const nlohmann::ordered_json generation = {{"bos_token_id", beginning}, {"eos_token_id", end}};
  return {json.dump(2) + "\n", generation.dump(2) + "\n"};
}

}  // namespace flashshard::exchange
