// bf16 x bf16 matrix products through oneDNN: primitives are built once per shape and kept.
// Without oneDNN at build time is_supported() is false and nothing else may be called.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/tensor.h"

namespace flashshard::cpu {

/// One block of out = op(a) * op(b) (+ out): (m, k) x (k, n). Strides are elements between stored
/// rows.
struct BlockProduct {
  int64_t m = 0, n = 0, k = 0;
  void* out = nullptr;
  const void* a = nullptr;
  const void* b = nullptr;
  int64_t out_stride = 0, a_stride = 0, b_stride = 0;
  bool transpose_a = false, transpose_b = false;
  bool accumulate = false;
  DType out_dtype = DType::kBF16;  // bf16 or fp32
};

/// For use by one thread at a time; each call computes on the calling thread alone.
class OneDnnMatMul {
 public:
  OneDnnMatMul();
  ~OneDnnMatMul();
  OneDnnMatMul(OneDnnMatMul&&) noexcept;
  OneDnnMatMul& operator=(OneDnnMatMul&&) noexcept;

  /// oneDNN is built in, and this processor has bf16 multiply-add instructions.
  static bool is_supported();
  /// "oneDNN 2.6.3 AVX512_BF16", or "" when not built in.
  static std::string version();

  /// a and b are bf16; sums in fp32, rounded once.
  void run(const BlockProduct& product);

 private:
  struct Cache;
  std::unique_ptr<Cache> cache_;
};

}  // namespace flashshard::cpu
