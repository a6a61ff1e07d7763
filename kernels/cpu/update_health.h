// Health counters of an update: looks at the sampled groups of a range before and after their
// block was updated. Not a hot loop: one group in 4096 comes here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/numerics/update_args.h"

namespace flashshard::cpu {

/// A block of whole groups in a tensor's memory; only its last group may have fewer elements.
struct HealthBlock {
  const UpdateTensor& tensor;
  int64_t first = 0;  // element in the tensor's memory
  int64_t elements = 0;
  // What the passes left of it: element i of a group stands at order[i].
  const float* momentum = nullptr;
  const float* root = nullptr;
  const float* direction = nullptr;
  const uint8_t* order = nullptr;
  const bool* accepted = nullptr;  // by group

  int64_t first_group() const { return (tensor.first_element + first) / kGroup; }
  int64_t end_element() const { return tensor.first_element + first + elements; }
};

class HealthProbe {
 public:
  /// For elements [begin, end) of the tensor; samples nothing where the tensor has no counters.
  HealthProbe(const UpdateTensor& tensor, const UpdateFactors& factors, int64_t begin, int64_t end);

  /// Whether the next group to be sampled begins below this element of the whole tensor.
  bool wants(int64_t end_element) const { return next_element_ < end_element; }
  void before(const HealthBlock& block);
  void after(const HealthBlock& block);
  /// Adds what was counted to the tensor's counters, which threads share.
  void finish() const;

 private:
  /// A sampled group's weight and correction before the update.
  struct Snapshot {
    int64_t group = 0;
    alignas(8) std::array<std::byte, kGroup * sizeof(float)> weight = {};
    alignas(8) std::array<std::byte, kGroup * sizeof(int16_t)> correction = {};
  };

  void advance();
  void count_states(const HealthBlock& block, int64_t b, int64_t count);
  void count_updates(const HealthBlock& block, const Snapshot& old, int64_t b, int64_t count);

  const UpdateFactors& factors_;
  UpdateHealth* total_;
  UpdateHealth health_;
  uint64_t key_ = 0;
  int64_t stretch_ = 0, end_ = 0;      // of the next sampled group; element behind the range
  int64_t next_element_;               // of that group the first, in the whole tensor
  std::array<Snapshot, 2> snapshots_;  // a block is shorter than a stretch: it meets at most two
  size_t taken_ = 0;
};

}  // namespace flashshard::cpu
