// Built-in model shapes: the values of `model.preset`.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "proto/run.pb.h"

namespace flashshard::config {

struct ModelPreset {
  std::string_view name;
  std::string_view purpose;
  int64_t hidden_size;
  int32_t layers;
  int64_t heads;
  int64_t kv_heads;
  int64_t feed_forward_size;
};

std::span<const ModelPreset> model_presets();

/// Fills the fields that `model` leaves unset from the preset it names; no preset, no change.
/// Throws Error(kUsage) for an unknown name, with the nearest right one. `where`: the place it was
/// set at.
void apply_model_preset(proto::ModelSection& model, const std::string& where);

}  // namespace flashshard::config
