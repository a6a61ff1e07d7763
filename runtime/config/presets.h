// Built-in model shapes: the values of `model.preset`. A family is one file in presets/ in text
// format of proto/presets.proto; the build compiles every file there in.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "proto/presets.pb.h"
#include "proto/run.pb.h"

namespace flashshard::config {

/// A file of presets/.
struct PresetFile {
  std::string_view name;
  std::string_view text;
};
std::span<const PresetFile> preset_files();

/// The families in the order of their files' names, each in the order of its file.
std::span<const proto::ModelPreset> model_presets();

/// Fills the fields that `model` leaves unset from the preset it names; no preset, no change.
/// Throws Error(kUsage) for an unknown name, with the nearest right one. `where`: the place it was
/// set at.
void apply_model_preset(proto::ModelSection& model, const std::string& where);

}  // namespace flashshard::config
