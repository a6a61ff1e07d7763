// What the C API asks of its arguments before anything is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/capi/flashshard.h"

namespace flashshard::capi {

/// Ends a call: its status and text.
class Refusal : public std::runtime_error {
 public:
  Refusal(fs_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
  fs_status status() const { return status_; }

 private:
  fs_status status_;
};

/// More elements than any memory has; byte counts below it do not overflow.
constexpr int64_t kMostElements = int64_t{1} << 48;

void require_pointer(const void* pointer, const char* name);
/// Of any struct, later versions included: a larger struct_size was never set.
constexpr uint32_t kLargestStruct = 4096;

/// `size` is what the caller set, `known` the size of the struct as this version has it. What a
/// later version appended must be zero, "not given".
void require_struct(const void* given, uint32_t size, size_t known, const char* name);
void require_enumerator(int32_t value, int32_t largest, const char* name);
void require_count(int64_t count);
/// Rounding to nearest, denormals not flushed: what the formulas' bits depend on.
void require_ieee_arithmetic();

/// The buffers of one call, checked one by one and against each other.
class Buffers {
 public:
  /// `bytes` of elements of `alignment` bytes; 0 bytes: not given.
  void require(const fs_buffer& buffer, uint64_t bytes, size_t alignment, const char* name);
  /// What follows is of the call's tensor `index`, and is named so.
  void begin_tensor(size_t index) { tensor_ = index; }
  /// No two of those given share memory.
  void require_disjoint() const;

 private:
  struct Named {
    uintptr_t begin, end;
    const char* name;
    std::optional<size_t> tensor;
  };
  static std::string text(const Named& buffer);

  std::vector<Named> given_;
  std::optional<size_t> tensor_;
};

/// Sums of squares, never negative, with room for the next ones.
void require_limbs(const int64_t* limbs, size_t count);
/// Every scale is one that encoding makes.
void require_scales(int32_t format, const fs_buffer& scales, const char* name);

}  // namespace flashshard::capi
