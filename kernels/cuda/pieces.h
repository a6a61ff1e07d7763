// How a tensor is cut into pieces for the CUDA kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/update_table.h"

namespace flashshard::cuda {

/// Elements first to first + count, whole groups but for the last piece of all.
struct Piece {
  int64_t first = 0;
  uint32_t count = 0;  // kRunSpan at most
  bool wide = false;   // to be read kWide elements at a time
};

/// Calls body(piece). A tensor that cannot be read wide is narrow all through, another where it
/// ends in a short group. Pieces end at multiples of kRunSpan from element -first_element.
template <class Body>
void for_each_piece(int64_t count, int64_t first_element, bool wide, const Body& body) {
  for (int64_t first = 0; first < count;) {
    const int64_t to_span_end = kRunSpan - (first_element + first) % kRunSpan;
    const int64_t size = std::min(count - first, to_span_end);
    const int64_t whole = wide ? size / kGroup * kGroup : 0;
    if (whole > 0) body(Piece{first, static_cast<uint32_t>(whole), true});
    if (whole < size) body(Piece{first + whole, static_cast<uint32_t>(size - whole), false});
    first += size;
  }
}

inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

/// Null stays null.
template <class T>
T* advanced(T* pointer, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
  return pointer == nullptr ? nullptr
                            : reinterpret_cast<T*>(reinterpret_cast<Byte*>(pointer) + bytes);
}

}  // namespace flashshard::cuda
