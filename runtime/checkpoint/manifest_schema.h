// The tensor table of a manifest message: written from a Schema, and read back with every number
// checked.
#pragma once

#include <string>

#include "runtime/checkpoint/schema.h"

namespace flashshard::proto {
class Manifest;
}

namespace flashshard::checkpoint {

void write_schema(const Schema& schema, proto::Manifest& message);
/// Throws Error(kCheckpoint) naming tensor and field.
Schema read_schema(const proto::Manifest& message, const std::string& where);

}  // namespace flashshard::checkpoint
