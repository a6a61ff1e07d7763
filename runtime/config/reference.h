// The reference of all settings, made from proto/run.proto: for `train --help` and for
// docs/configuration.md.
#pragma once

#include <string>

namespace flashshard {

/// Sections, fields and presets as plain text, at most 100 columns wide.
std::string field_help();

/// docs/configuration.md. `flashshard_config_reference docs/configuration.md` writes it, a test
/// compares it.
std::string configuration_markdown();

}  // namespace flashshard
