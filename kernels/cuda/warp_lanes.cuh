// The lanes of a group on a GPU: each thread is one of them. With it what the lane code asks of its
// surroundings: wide memory accesses and counters.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace flashshard::cuda {

static __device__ __forceinline__ void load_8_bytes(const void* from, uint32_t* words) {
  const uint2 value = *static_cast<const uint2*>(from);
  words[0] = value.x, words[1] = value.y;
}
static __device__ __forceinline__ void load_16_bytes(const void* from, uint32_t* words) {
  const uint4 value = *static_cast<const uint4*>(from);
  words[0] = value.x, words[1] = value.y, words[2] = value.z, words[3] = value.w;
}
static __device__ __forceinline__ void store_8_bytes(void* to, const uint32_t* words) {
  *static_cast<uint2*>(to) = make_uint2(words[0], words[1]);
}
static __device__ __forceinline__ void store_16_bytes(void* to, const uint32_t* words) {
  *static_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

/// Counters are shared by all groups of a call.
static __device__ __forceinline__ void add_to_counter(int64_t* counter, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(value));
}

template <class Lane, int kLanesOfGroup>
class WarpLanes {
 public:
  static constexpr int kCount = kLanesOfGroup;

  /// body(lane, its index in the group).
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) {
    body(lane_, threadIdx.x % kLanesOfGroup);
  }
  /// In every lane: member = combine(member, member of the lane at `distance`, a power of two). All
  /// lanes of the warp call it.
  template <auto member, class Combine>
  __device__ __forceinline__ void exchange(int distance, const Combine& combine) {
    lane_.*member = combine(lane_.*member, __shfl_xor_sync(~0u, lane_.*member, distance));
  }

 private:
  Lane lane_;
};

}  // namespace flashshard::cuda
