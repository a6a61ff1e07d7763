// Where memory comes from: one arena per class, so that a run's memory table is a by-product and
// not an estimate.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace flashshard {

enum class MemoryClass : uint8_t {
  kWeights,
  kGradients,
  kAccumulator,
  kMomentum,
  kVariance,
  kScales,
  kCorrection,
  kProjection,
  kBuckets,
  kGathered,
  kStaging,
  kActivations,
  kOther,
};
constexpr size_t kMemoryClasses = 13;
std::string_view name_of(MemoryClass memory_class);

/// Bytes by class: predicted by formulas (ledger.h) or tagged by arenas.
struct MemoryTable {
  std::array<int64_t, kMemoryClasses> bytes = {};
  int64_t& operator[](MemoryClass c) { return bytes[static_cast<size_t>(c)]; }
  int64_t operator[](MemoryClass c) const { return bytes[static_cast<size_t>(c)]; }
  int64_t total() const;
};

/// Of every allocation, bytes; tensors that share one keep to it.
constexpr int64_t kArenaAlignment = 256;

/// Owns every allocation of a rank. Memory is zeroed, aligned to 256 bytes and lives until the
/// ledger does: a run allocates at its start and never in a step.
class MemoryLedger {
 public:
  explicit MemoryLedger(Backend& backend) : backend_(backend) {}
  ~MemoryLedger();
  MemoryLedger(const MemoryLedger&) = delete;
  MemoryLedger& operator=(const MemoryLedger&) = delete;

  /// Throws Error(kOutOfSpace) naming the class and the size.
  void* allocate(MemoryClass memory_class, size_t bytes);
  Tensor tensor(MemoryClass memory_class, DType dtype, std::initializer_list<int64_t> shape);

  /// Bytes asked for, by class.
  const MemoryTable& tagged() const { return tagged_; }
  Backend& backend() const { return backend_; }

 private:
  struct Block {
    void* pointer;
    size_t bytes;
  };
  Backend& backend_;
  std::vector<Block> blocks_;
  MemoryTable tagged_;
};

}  // namespace flashshard
