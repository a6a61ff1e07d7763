#include "kernels/capi/checks.h"

#include <algorithm>
#include <cfenv>

#include "kernels/numerics/formats.h"
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace flashshard::capi {

void require_pointer(const void* pointer, const char* name) {
  if (pointer == nullptr) {
    throw Refusal(FS_INVALID_ARGUMENT, std::string(name) + " is null");
  }
}

void require_struct(const void* given, uint32_t size, size_t known, const char* name) {
  const auto* bytes = static_cast<const unsigned char*>(given);
  const bool plausible = size >= known && size <= kLargestStruct;
  if (plausible && std::all_of(bytes + known, bytes + size, [](auto byte) { return byte == 0; })) {
    return;
  }
  throw Refusal(FS_INVALID_ARGUMENT,
                std::string(name) +
                    (plausible ? " has fields that this version does not know; its sizeof(" +
                                     std::string(name) + ") is "
                               : ".struct_size is " + std::to_string(size) +
                                     ", it must be sizeof(" + name + "), ") +
                    std::to_string(known));
}

void require_enumerator(int32_t value, int32_t largest, const char* name) {
  if (value < 0 || value > largest) {
    throw Refusal(FS_INVALID_ARGUMENT, std::string(name) + " is " + std::to_string(value) +
                                           ", it must lie in 0 to " + std::to_string(largest));
  }
}

void require_count(int64_t count) {
  if (count < 0 || count > kMostElements) {
    throw Refusal(FS_INVALID_ARGUMENT,
                  "count is " + std::to_string(count) + ", it must lie in 0 to 2^48");
  }
}

void require_ieee_arithmetic() {
  if (std::fegetround() != FE_TONEAREST) {
    throw Refusal(FS_ENVIRONMENT, "this thread's rounding mode is not to nearest (fesetround)");
  }
#if defined(__SSE__)
  // fegetround reads the x87 unit alone, the loops compute in SSE.
  constexpr unsigned kRoundingControl = 0x6000, kFlushes = 0x8040;  // FTZ and DAZ
  if ((_mm_getcsr() & kRoundingControl) != 0) {
    throw Refusal(FS_ENVIRONMENT, "this thread's rounding mode is not to nearest (MXCSR)");
  }
  if ((_mm_getcsr() & kFlushes) != 0) {
    throw Refusal(FS_ENVIRONMENT, "this thread flushes denormals (MXCSR has FTZ or DAZ set)");
  }
#elif defined(__aarch64__)
  constexpr uint64_t kFlushes = 0x1000003;  // FZ; of processors that have them AH and FIZ
  uint64_t control = 0;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  if ((control & kFlushes) != 0) {
    throw Refusal(FS_ENVIRONMENT,
                  "this thread flushes denormals or computes NaN in another way (FPCR has FZ, FIZ "
                  "or AH set)");
  }
#endif
}

void Buffers::require(const fs_buffer& buffer, uint64_t bytes, size_t alignment, const char* name) {
  if (buffer.bytes != bytes) {
    throw Refusal(FS_WRONG_SIZE, std::string(name) + " has " + std::to_string(buffer.bytes) +
                                     " bytes, the call needs " + std::to_string(bytes));
  }
  if (bytes == 0) return;
  require_pointer(buffer.data, name);
  const auto begin = reinterpret_cast<uintptr_t>(buffer.data);
  if (begin % alignment != 0) {
    throw Refusal(FS_MISALIGNED, std::string(name) + " does not start at a multiple of " +
                                     std::to_string(alignment) + " bytes");
  }
  given_.push_back({begin, begin + bytes, name, tensor_});
}

std::string Buffers::text(const Named& buffer) {
  if (!buffer.tensor) return buffer.name;
  return std::string(buffer.name) + " of tensor " + std::to_string(*buffer.tensor);
}

void Buffers::require_disjoint() const {
  std::vector<Named> sorted = given_;
  std::ranges::stable_sort(sorted, {}, &Named::begin);
  for (size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i - 1].end <= sorted[i].begin) continue;
    throw Refusal(FS_OVERLAP, text(sorted[i - 1]) + " and " + text(sorted[i]) + " share memory");
  }
}

void require_limbs(const int64_t* limbs, size_t count) {
  constexpr int64_t kMost = int64_t{1} << 62;
  for (size_t i = 0; i < count; ++i) {
    if (limbs[i] >= 0 && limbs[i] <= kMost) continue;
    throw Refusal(FS_INVALID_ARGUMENT, "limbs[" + std::to_string(i) + "] is " +
                                           std::to_string(limbs[i]) +
                                           ", a sum of squares lies in 0 to 2^62");
  }
}

void require_scales(int32_t format, const fs_buffer& scales, const char* name) {
  const auto* codes = static_cast<const uint16_t*>(scales.data);
  const auto* end = codes + scales.bytes / sizeof(uint16_t);
  const auto* bad = format == FS_STATE_V2
                        ? std::find_if_not(codes, end, numerics::is_valid_scale_code)
                        : std::find_if(codes, end, [](uint16_t half) { return half >= 0x7c00; });
  if (bad != end) {
    throw Refusal(FS_CORRUPT, std::string(name) + "[" + std::to_string(bad - codes) + "] is " +
                                  std::to_string(*bad) + ", which no encoding makes");
  }
}

}  // namespace flashshard::capi
