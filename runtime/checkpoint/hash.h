// Hashes of a checkpoint. XXH3-128 (xxHash's XXH3, 128 bits) guards bytes against corruption; it is
// no signature.
//
// The logical hash of a run's state is the sum modulo 2^128, over all units of all tensors, of
//   XXH3-128(tensor name, 0x00, state name, 0x00, unit index as 8 little-endian bytes, the unit's
//   bytes)
// with the weight as state "weight". A sum has no order and no shard boundary cuts a unit, so it is
// the same for every sharding, and each rank can add up its own part of a running job.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "comm/communicator.h"
#include "optim/shard_layout.h"
#include "optim/sharded_state.h"

namespace flashshard::checkpoint {

struct Hash128 {
  uint64_t low = 0;
  uint64_t high = 0;

  Hash128& operator+=(Hash128 other);  // modulo 2^128
  friend bool operator==(const Hash128&, const Hash128&) = default;
  /// 32 hexadecimal digits, most significant first: xxHash's canonical form.
  std::string hex() const;
  static std::optional<Hash128> from_hex(std::string_view text);
};

/// XXH3-128 of bytes that come in pieces.
class Xxh3 {
 public:
  Xxh3();
  void add(std::span<const std::byte> bytes);
  Hash128 digest() const;
  void reset();

 private:
  struct Free {
    void operator()(void* state) const noexcept;
  };
  std::unique_ptr<void, Free> state_;
};
Hash128 xxh3_128(std::span<const std::byte> bytes);

/// What the bytes of a state are for. "weight", "correction", "error_correction", "momentum",
/// "variance"; names ending in "_scale" are scales.
enum class StateClass : uint8_t { kWeights, kCorrection, kMomentum, kVariance, kScales, kOther };
constexpr size_t kStateClasses = 6;
std::string_view name_of(StateClass state_class);  // "weights", "correction", ...
StateClass class_of_state(std::string_view state);

/// A logical hash, whole or one rank's part of it.
struct LogicalHash {
  std::array<Hash128, kStateClasses> by_class = {};

  Hash128 of(StateClass state_class) const { return by_class[static_cast<size_t>(state_class)]; }
  Hash128 total() const;
  LogicalHash& operator+=(const LogicalHash& other);
  friend bool operator==(const LogicalHash&, const LogicalHash&) = default;
};

/// Consecutive units of one state of one tensor.
struct UnitRun {
  std::string_view tensor;
  std::string_view state;
  int64_t first_unit = 0;
  int64_t unit_bytes = 0;            // > 0; the last unit of a tensor may have fewer
  std::span<const std::byte> bytes;  // whole units
};

/// Adds up a logical hash unit by unit.
class LogicalHasher {
 public:
  void add(const UnitRun& run);
  const LogicalHash& sum() const { return sum_; }

 private:
  Xxh3 unit_;
  LogicalHash sum_;
};

/// The sum over all ranks; every rank calls it and gets the same.
LogicalHash all_reduce(const LogicalHash& part, Communicator& communicator);

/// The hash of a running job: of this rank's views alone, and summed over the ranks. Host-readable
/// views.
LogicalHash hash_of_views(const ShardLayout& layout, std::span<const ShardTensorView> views);
LogicalHash live_hash(const ShardLayout& layout, std::span<const ShardTensorView> views,
                      Communicator& communicator);

}  // namespace flashshard::checkpoint
