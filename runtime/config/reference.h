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

/// A page with what stands between its lines `<!-- legality -->` and `<!-- end of legality -->`
/// replaced by the tables of what can be combined (optim/legality.h). Throws Error(kInternal) when
/// it has no such lines.
std::string with_legality_tables(std::string page);

}  // namespace flashshard
