// See presets.h.
#include "runtime/config/presets.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <vector>

#include "kernels/error.h"
#include "runtime/config/schema.h"

namespace flashshard::config {
namespace {

std::vector<proto::ModelPreset> read_presets() {
  std::vector<proto::ModelPreset> presets;
  for (const PresetFile& file : preset_files()) {
    proto::PresetFamily family;
    if (!google::protobuf::TextFormat::ParseFromString(std::string(file.text), &family)) {
      throw Error(ExitCode::kInternal, "a built-in file of presets cannot be read",
                  fmt::format("runtime/config/presets/{}", file.name));
    }
    presets.insert(presets.end(), family.preset().begin(), family.preset().end());
  }
  return presets;
}

}  // namespace

std::span<const proto::ModelPreset> model_presets() {
  static const std::vector<proto::ModelPreset> kPresets = read_presets();
  return kPresets;
}

void apply_model_preset(proto::ModelSection& model, const std::string& where) {
  if (model.preset().empty()) return;
  const auto presets = model_presets();
  const auto preset = std::ranges::find(presets, model.preset(), &proto::ModelPreset::name);
  if (preset == presets.end()) {
    std::vector<std::string> names;
    names.reserve(presets.size());
    for (const proto::ModelPreset& known : presets) names.push_back(known.name());
    throw Error(ExitCode::kUsage,
                fmt::format("model.preset is {}, allowed: {}", quoted(model.preset()),
                            fmt::join(names, " or ")),
                where, did_you_mean(model.preset(), names));
  }
  proto::ModelSection filled = preset->model();
  filled.MergeFrom(model);
  model = filled;
}

}  // namespace flashshard::config
