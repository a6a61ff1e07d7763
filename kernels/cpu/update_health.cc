#include "kernels/cpu/update_health.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "kernels/numerics/formats.h"
#include "kernels/numerics/health.h"

namespace flashshard::cpu {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

/// Codes of scales at the ends of a format's range.
struct ScaleEdges {
  uint16_t smallest, largest;
};
constexpr ScaleEdges edges_of(StateFormat format) {
  // fp16 below 0x400 is subnormal: fewer bits, in the end none.
  if (format == StateFormat::kFlashOptim) return {0x3ff, 0x7bff};
  return {numerics::kSmallestScaleCode, numerics::kLargestScaleCode};
}

template <class T>
T at(const void* base, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(base) + index * int64_t{sizeof(T)}, sizeof(T));
  return value;
}

/// Element i of an array of unsigned words; 0 where there is no array (0 bytes).
uint32_t word(const void* values, int64_t bytes, int64_t i) {
  if (bytes == 4) return at<uint32_t>(values, i);
  if (bytes == 2) return at<uint16_t>(values, i);
  return bytes == 0 ? 0 : at<uint8_t>(values, i);
}
/// Element i of floats of 2 or 4 bytes without its sign.
uint32_t magnitude(const void* values, int64_t bytes, int64_t i) {
  return word(values, bytes, i) & (bytes == 4 ? 0x7fffffffU : 0x7fffU);
}

bool any_nonzero(const float* group, const uint8_t* order, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (group[order[i]] != 0) return true;
  }
  return false;
}

}  // namespace

HealthProbe::HealthProbe(const UpdateTensor& tensor, const UpdateFactors& factors, int64_t begin,
                         int64_t end)
    : factors_(factors), total_(tensor.health), next_element_(kNone) {
  if (total_ == nullptr) return;
  key_ = numerics::health_key(tensor.key, factors.t);
  const int64_t first = tensor.first_element + begin;
  end_ = tensor.first_element + end;
  stretch_ = first / (numerics::kHealthStretch * kGroup) - 1;
  do {
    advance();
  } while (next_element_ < first);
}

void HealthProbe::advance() {
  next_element_ = numerics::sampled_group(key_, ++stretch_) * kGroup;
  if (next_element_ >= end_) next_element_ = kNone;
}

void HealthProbe::before(const HealthBlock& block) {
  const UpdateTensor& t = block.tensor;
  for (; wants(block.end_element()); advance()) {
    Snapshot& old = snapshots_[taken_++];
    old.group = next_element_ / kGroup;
    const int64_t offset = next_element_ - block.first_group() * kGroup;
    const int64_t count = std::min(kGroup, block.elements - offset);
    const int64_t i = block.first + offset;
    const auto save = [&](std::byte* to, const void* from, int64_t bytes) {
      if (bytes == 0) return;
      std::memcpy(to, static_cast<const std::byte*>(from) + i * bytes,
                  static_cast<size_t>(count * bytes));
    };
    save(old.weight.data(), t.weight, weight_bytes(t.weight_format));
    save(old.correction.data(), t.correction, correction_bytes(t.weight_format));
  }
}

void HealthProbe::after(const HealthBlock& block) {
  for (size_t s = 0; s < taken_; ++s) {
    const int64_t g = snapshots_[s].group - block.first_group();
    const int64_t count = std::min(kGroup, block.elements - g * kGroup);
    ++health_.sampled_groups;
    if (!block.accepted[g]) continue;  // counted among the rejected
    count_states(block, g * kGroup, count);
    count_updates(block, snapshots_[s], g * kGroup, count);
  }
  taken_ = 0;
}

void HealthProbe::count_states(const HealthBlock& block, int64_t b, int64_t count) {
  const UpdateTensor& t = block.tensor;
  if (!has_codes(t.state_format) || t.momentum == nullptr) return;
  const ScaleEdges edges = edges_of(t.state_format);
  const int64_t i = block.first + b, group = i / kGroup;
  ++health_.coded_groups;
  bool saturated = false;
  const auto look_at = [&](const uint16_t* scales, const float* values) {
    if (scales == nullptr) return;
    ++health_.sampled_scales;
    saturated |= scales[group] >= edges.largest;
    if (scales[group] <= edges.smallest && any_nonzero(values + b, block.order, count))
      ++health_.edge_scales;
  };
  look_at(t.momentum_scale, block.momentum);
  look_at(t.variance_scale, block.root);
  if (saturated) ++health_.saturated_groups;
  if (t.variance == nullptr) return;
  health_.sampled_variances += count;
  const auto gradient_bytes = static_cast<int64_t>(size_of(t.gradient_dtype));
  for (int64_t k = i; k < i + count; ++k) {
    const auto code = at<uint8_t>(t.variance, k);
    if (code == 1) ++health_.variance_codes_at_1;
    if (code == 0 && (magnitude(t.gradient, gradient_bytes, k) | word(t.momentum, 1, k)) != 0) {
      ++health_.variance_codes_at_0;
    }
  }
}

void HealthProbe::count_updates(const HealthBlock& block, const Snapshot& old, int64_t b,
                                int64_t count) {
  const UpdateTensor& t = block.tensor;
  const int64_t weight = weight_bytes(t.weight_format);
  const int64_t correction = correction_bytes(t.weight_format);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t k = block.first + b + i;
    const uint32_t old_correction = word(old.correction.data(), correction, i);
    const bool zero = (magnitude(old.weight.data(), weight, i) | old_correction) == 0;
    const bool moves = (block.direction[b + block.order[i]] != 0 && factors_.step_size != 0) ||
                       (t.weight_decay_factor != 1 && !zero);
    if (!moves) continue;
    ++health_.sampled_updates;
    if (word(old.weight.data(), weight, i) == word(t.weight, weight, k) &&
        old_correction == word(t.correction, correction, k)) {
      ++health_.lost_updates;
    }
  }
}

void HealthProbe::finish() const {
  if (total_ == nullptr) return;
  for (const auto& [name, counter] : kHealthCounters) {
    if (health_.*counter == 0) continue;
    std::atomic_ref<int64_t>(total_->*counter)
        .fetch_add(health_.*counter, std::memory_order_relaxed);
  }
}

}  // namespace flashshard::cpu
