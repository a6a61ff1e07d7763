// Views of memory: pointer, dtype, shape. A Tensor never owns what it points to.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace flashshard {

enum class DType : uint8_t { kBF16, kFP32, kINT32, kINT8, kUINT8, kINT16, kUINT16, kFP16 };

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFP32:
    case DType::kINT32:
      return 4;
    case DType::kBF16:
    case DType::kFP16:
    case DType::kINT16:
    case DType::kUINT16:
      return 2;
    case DType::kINT8:
    case DType::kUINT8:
      return 1;
  }
  return 0;
}

/// A contiguous row-major view of at most four dimensions.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kBF16;
  int rank = 0;
  std::array<int64_t, 4> shape = {0, 0, 0, 0};

  Tensor() = default;
  Tensor(void* pointer, DType type, std::initializer_list<int64_t> dimensions)
      : data(pointer), dtype(type), rank(static_cast<int>(dimensions.size())) {
    assert(dimensions.size() <= 4);
    size_t i = 0;
    for (int64_t d : dimensions) shape[i++] = d;
  }

  explicit operator bool() const { return data != nullptr; }

  int64_t elements() const {
    int64_t n = rank == 0 ? 0 : 1;
    for (int i = 0; i < rank; ++i) n *= shape[static_cast<size_t>(i)];
    return n;
  }
  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype); }
  int64_t rows() const { return rank == 0 ? 0 : shape[0]; }
  /// Elements of one row: the product of all dimensions but the first.
  int64_t cols() const {
    int64_t n = rows() == 0 ? 0 : 1;
    for (int i = 1; i < rank; ++i) n *= shape[static_cast<size_t>(i)];
    return n;
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  /// Rows [first, first + count) as a view.
  Tensor row_range(int64_t first, int64_t count) const {
    assert(first >= 0 && count >= 0 && first + count <= rows());
    Tensor t = *this;
    t.data = static_cast<std::byte*>(data) + static_cast<size_t>(first * cols()) * size_of(dtype);
    t.shape[0] = count;
    return t;
  }
};

}  // namespace flashshard
