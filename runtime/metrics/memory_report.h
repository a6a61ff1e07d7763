// memory.json: what each rank's memory was predicted to be, what its arenas hold, and what is seen
// from outside.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <type_traits>

#include "optim/memory.h"

namespace flashshard::metrics {

/// One rank's row. Plain bytes, so that ranks can gather it as it is.
struct RankMemory {
  MemoryTable predicted;
  MemoryTable tagged;
  /// Growth of the resident set (CPU) or of the device's used memory since before the first arena,
  /// bytes.
  int64_t seen_from_outside = 0;
};
static_assert(std::is_trivially_copyable_v<RankMemory>);

/// Bytes that stay from step to step and grow with the parameters: weights, gradients, accumulator,
/// momentum, variance, scales, correction, projection. The rest is transient or grows with the
/// batch.
int64_t training_state_bytes(const MemoryTable& table);

/// The text of memory.json for ranks 0, 1, ...; `parameters`: of the whole model, at least 1.
std::string memory_json(std::span<const RankMemory> ranks, int64_t parameters);

/// Replaces the file. Throws Error(kOutOfSpace or kUsage).
void write_memory_json(const std::filesystem::path& path, std::span<const RankMemory> ranks,
                       int64_t parameters);

}  // namespace flashshard::metrics
