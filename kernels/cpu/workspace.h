// Cuts the bound workspace into aligned pieces. The same layout code measures (no memory) and takes
// (memory bound), so a call can never need more than it announced.
#pragma once

#include <cstddef>
#include <string>

#include "kernels/error.h"

namespace flashshard::cpu {

class Workspace {
 public:
  static constexpr size_t kAlignment = 64;

  /// Measures only: take() counts and returns null.
  Workspace() = default;
  Workspace(std::byte* memory, size_t bytes) : memory_(memory), capacity_(bytes) {}

  template <class T>
  T* take(size_t count) {
    const size_t begin = used_;
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (memory_ == nullptr && capacity_ == kUnbounded) return nullptr;
    if (used_ > capacity_) {
      throw Error(ExitCode::kInternal,
                  "the bound workspace has " + std::to_string(capacity_) +
                      " bytes, this call needs at least " + std::to_string(used_),
                  "cpu backend", "bind the maximum of workspace_bytes() over all calls");
    }
    return reinterpret_cast<T*>(memory_ + begin);
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kUnbounded = ~size_t{0};
  std::byte* memory_ = nullptr;
  size_t capacity_ = kUnbounded;
  size_t used_ = 0;
};

}  // namespace flashshard::cpu
