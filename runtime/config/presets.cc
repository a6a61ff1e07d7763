// See presets.h.
#include "runtime/config/presets.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "runtime/config/schema.h"

namespace flashshard::config {
namespace {

constexpr std::array<ModelPreset, 3> kPresets = {{
    {.name = "tiny",
     .purpose = "runs of seconds and tests",
     .hidden_size = 32,
     .layers = 2,
     .heads = 2,
     .kv_heads = 1,
     .feed_forward_size = 64},
    {.name = "quickstart",
     .purpose = "about 2.4 million parameters over bytes: readable text after minutes on two cores",
     .hidden_size = 192,
     .layers = 6,
     .heads = 6,
     .kv_heads = 2,
     .feed_forward_size = 512},
    {.name = "25m",
     .purpose = "about 26 million parameters over bytes: measurements of the optimizer",
     .hidden_size = 512,
     .layers = 8,
     .heads = 8,
     .kv_heads = 8,
     .feed_forward_size = 1408},
}};

}  // namespace

std::span<const ModelPreset> model_presets() { return kPresets; }

void apply_model_preset(proto::ModelSection& model, const std::string& where) {
  if (model.preset().empty()) return;
  const auto preset = std::ranges::find(kPresets, model.preset(), &ModelPreset::name);
  if (preset == kPresets.end()) {
    std::vector<std::string> names;
    names.reserve(kPresets.size());
    for (const ModelPreset& known : kPresets) names.emplace_back(known.name);
    throw Error(ExitCode::kUsage,
                fmt::format("model.preset is {}, allowed: {}", quoted(model.preset()),
                            fmt::join(names, " or ")),
                where, did_you_mean(model.preset(), names));
  }
  if (!model.has_hidden_size()) model.set_hidden_size(preset->hidden_size);
  if (!model.has_layers()) model.set_layers(preset->layers);
  if (!model.has_heads()) model.set_heads(preset->heads);
  if (!model.has_kv_heads()) model.set_kv_heads(preset->kv_heads);
  if (!model.has_feed_forward_size()) model.set_feed_forward_size(preset->feed_forward_size);
}

}  // namespace flashshard::config
