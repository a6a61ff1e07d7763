#include "launch/bench/update_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/random_values.h"

namespace flashshard::launch {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr int64_t kPattern = int64_t{1} << 16;  // elements that differ; then they repeat
constexpr double kLearningRate = 1e-3;

std::vector<float> normal_pattern(uint64_t seed, float deviation) {
  std::vector<float> values(static_cast<size_t>(kPattern));
  numerics::fill_normal(values, {.seed = seed, .tensor = 0}, 0, deviation);
  return values;
}

}  // namespace

PageMemory::PageMemory(size_t bytes)
    : bytes_(static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{kHugePage}))),
      size_(bytes) {
  // As a run's arenas have them: a hint, which a kernel without huge pages refuses.
  if (bytes >= kHugePage) madvise(bytes_.get(), bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  std::memset(bytes_.get(), 0, bytes);
}

void PageMemory::Release::operator()(std::byte* pointer) const {
  ::operator delete[](pointer, std::align_val_t{kHugePage});
}

PageMemory make_gradients(int64_t elements) {
  PageMemory memory(static_cast<size_t>(elements) * sizeof(uint16_t));
  const std::vector<float> pattern = normal_pattern(2, 1e-3f);
  auto* gradients = reinterpret_cast<uint16_t*>(memory.data());
  for (int64_t i = 0; i < elements; ++i) {
    gradients[i] = float_to_bf16(pattern[static_cast<size_t>(i % kPattern)]);
  }
  return memory;
}

WeightFormat UpdateCase::weight_format() const {
  const bool v1 = state == StateFormat::kFlashOptim;
  switch (master_bits) {
    case 24:
      return v1 ? WeightFormat::kCorrected24 : WeightFormat::kSplit24;
    case 32:
      return v1 ? WeightFormat::kCorrected32 : WeightFormat::kSplit32;
    default:
      return WeightFormat::kBF16;
  }
}

UpdateMemory::UpdateMemory(const UpdateCase& which, int64_t elements, const PageMemory& gradients)
    : which_(which) {
  const auto count = static_cast<size_t>(elements), groups = count / kGroup;
  const bool codes = has_codes(which.state);
  tensor_.weight_format = which.weight_format();
  tensor_.state_format = which.state;
  tensor_.gradient = gradients.data();
  tensor_.count = elements;
  tensor_.key = {.seed = 42, .tensor = 3};
  tensor_.weight = add(count * sizeof(uint16_t));
  const auto correction = static_cast<size_t>(correction_bytes(tensor_.weight_format));
  if (correction > 0) tensor_.correction = add(count * correction);
  const auto add_scales = [&] {
    auto* scales = static_cast<uint16_t*>(add(groups * sizeof(uint16_t)));
    const uint16_t fresh = which.state == StateFormat::kCompanded ? kFreshScale : 0;
    std::fill_n(scales, groups, fresh);
    return scales;
  };
  tensor_.momentum = add(count * (codes ? 1 : sizeof(float)));
  if (codes) tensor_.momentum_scale = add_scales();
  if (has_variance(which.rule)) {
    tensor_.variance = add(count * (codes ? 1 : sizeof(float)));
    if (codes) tensor_.variance_scale = add_scales();
  }
  set_decay(tensor_, which.rule, {.rate = 0.1}, kLearningRate);

  const std::vector<float> pattern = normal_pattern(1, 0.02f);
  for (int64_t first = 0; first < elements; first += kPattern) {
    EncodeMaster call{.format = tensor_.weight_format, .values = pattern.data()};
    call.weight = static_cast<uint16_t*>(tensor_.weight) + first;
    if (correction > 0) {
      call.correction =
          static_cast<std::byte*>(tensor_.correction) + static_cast<size_t>(first) * correction;
    }
    call.count = std::min(kPattern, elements - first);
    cpu::update_loops().encode_master(call, 0, call.count);
  }
  cpu::update_loops().update(tensor_, next_factors(), 0, elements);
}

void* UpdateMemory::add(size_t bytes) {
  blocks_.emplace_back(bytes);
  return blocks_.back().data();
}

UpdateFactors UpdateMemory::next_factors() {
  const Rounding rounding =
      which_.state == StateFormat::kFlashOptim ? Rounding::kNearest : which_.rounding;
  return make_update_factors(which_.rule, which_.hyper(), kLearningRate, 0.5, rounding, ++t_);
}

double UpdateMemory::bytes_per_parameter() const {
  size_t state = 0;
  for (const PageMemory& block : blocks_) state += block.size();
  const auto gradient = static_cast<double>(sizeof(uint16_t));
  return gradient + 2 * static_cast<double>(state) / static_cast<double>(tensor_.count);
}

bool UpdateMemory::same_bits(const UpdateMemory& other) const {
  return std::equal(blocks_.begin(), blocks_.end(), other.blocks_.begin(), other.blocks_.end(),
                    [](const PageMemory& a, const PageMemory& b) {
                      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
                    });
}

std::vector<float> UpdateMemory::master() const {
  std::vector<float> values(static_cast<size_t>(tensor_.count));
  const DecodeMaster call{tensor_.weight_format, values.data(), tensor_.weight, tensor_.correction,
                          tensor_.count};
  cpu::update_loops().decode_master(call, 0, tensor_.count);
  return values;
}

double UpdateMemory::largest_difference(const UpdateMemory& other) const {
  const std::vector<float> a = master(), b = other.master();
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::fabs(double{a[i]} - double{b[i]}));
  }
  return largest / kLearningRate;
}

}  // namespace flashshard::launch
