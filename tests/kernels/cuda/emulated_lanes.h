// The CUDA kernels on a CPU: their lane code, compiled for the host, with the lanes of a group as a
// loop and shuffles as reads of an array. Sources that include it compile with -ffp-contract=off.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "kernels/cuda/sharding_tables.h"
#include "kernels/cuda/update_table.h"
#include "kernels/numerics/exact_sum.h"
#include "kernels/numerics/formats.h"
#include "kernels/numerics/scalar_arithmetic.h"

#define FLASHSHARD_FORMULA inline

namespace flashshard::cuda::emulation {

/// A GPU faults where an access is not aligned to its own size.
inline void require_aligned(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    throw std::runtime_error("misaligned access");
  }
}
inline void load_8_bytes(const void* from, uint32_t* words) {
  require_aligned(from, 8);
  std::memcpy(words, from, 8);
}
inline void load_16_bytes(const void* from, uint32_t* words) {
  require_aligned(from, 16);
  std::memcpy(words, from, 16);
}
inline void store_8_bytes(void* to, const uint32_t* words) {
  require_aligned(to, 8);
  std::memcpy(to, words, 8);
}
inline void store_16_bytes(void* to, const uint32_t* words) {
  require_aligned(to, 16);
  std::memcpy(to, words, 16);
}
inline void add_to_counter(int64_t* counter, int64_t value) { *counter += value; }

/// Stands for WarpLanes.
template <class Lane, int kLanesOfGroup>
class EmulatedLanes {
 public:
  static constexpr int kCount = kLanesOfGroup;

  template <class Body>
  void each(const Body& body) {
    for (uint32_t i = 0; i < kLanesOfGroup; ++i) body(lanes_[i], i);
  }
  template <auto member, class Combine>
  void exchange(int distance, const Combine& combine) {
    const std::array<Lane, kLanesOfGroup> before = lanes_;
    for (size_t i = 0; i < kLanesOfGroup; ++i) {
      lanes_[i].*member =
          combine(before[i].*member, before[i ^ static_cast<size_t>(distance)].*member);
    }
  }

 private:
  std::array<Lane, kLanesOfGroup> lanes_{};
};

// Each needs the ones before it.
// clang-format off
#include "kernels/numerics/formulas.inc"
#include "kernels/numerics/stored_values.inc"
#include "kernels/numerics/rules.inc"
#include "kernels/cuda/lane_memory.inc"
#include "kernels/cuda/update_lanes.inc"
#include "kernels/cuda/sharding_lanes.inc"
// clang-format on

using Scalar = numerics::ScalarArithmetic;

/// Calls body(lanes, tile, slot) for every group of every tile.
template <template <int> class Lane, int E, class Body>
void for_each_group(uint32_t tiles, const Body& body) {
  for (uint32_t tile = 0; tile < tiles; ++tile) {
    for (uint32_t slot = 0; slot < groups_of_tile(E); ++slot) {
      EmulatedLanes<Lane<E>, static_cast<int>(kGroup) / E> lanes;
      body(lanes, tile, slot);
    }
  }
}

template <int E, class Choice>
void run_update(const UpdateTable& table) {
  int run = 0;
  for_each_group<UpdateLane, E>(table.tiles, [&](auto& lanes, uint32_t tile, uint32_t slot) {
    while (tile >= table.run[run].end_tile) ++run;
    update_group<Scalar, E, Choice>(lanes, table, table.run[run], tile, slot);
  });
}

/// The launches of a call, in the code of the kernel for all combinations: all kernels are made of
/// its parts.
inline void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors) {
  for (const UpdateLaunch& launch : plan_updates(tensors, factors)) {
    launch.wide ? run_update<kWide, AnyChoice>(launch.table)
                : run_update<kNarrow, AnyChoice>(launch.table);
  }
}

inline void encode_master(const EncodeMaster& call) {
  const auto run = [](const MasterCall& each, auto e) {
    for_each_group<MasterLane, e()>(tiles_of(each.count, e()),
                                    [&](auto& lanes, uint32_t tile, uint32_t slot) {
                                      encode_master_group<Scalar, e()>(lanes, each, tile, slot);
                                    });
  };
  for (const MasterCall& each : plan_masters(call)) {
    each.wide ? run(each, std::integral_constant<int, kWide>())
              : run(each, std::integral_constant<int, kNarrow>());
  }
}

inline void decode_master(const DecodeMaster& call) {
  const auto run = [](const MasterCall& each, auto e) {
    for_each_group<MasterLane, e()>(tiles_of(each.count, e()),
                                    [&](auto& lanes, uint32_t tile, uint32_t slot) {
                                      decode_master_group<Scalar, e()>(lanes, each, tile, slot);
                                    });
  };
  for (const MasterCall& each : plan_masters(call)) {
    each.wide ? run(each, std::integral_constant<int, kWide>())
              : run(each, std::integral_constant<int, kNarrow>());
  }
}

inline void fold(const Fold& call) {
  const auto run = [](const FoldCall& each, auto e) {
    for_each_group<FoldLane, e()>(tiles_of(each.count, e()),
                                  [&](auto& lanes, uint32_t tile, uint32_t slot) {
                                    fold_group<Scalar, e()>(lanes, each, tile, slot);
                                  });
  };
  for (const FoldCall& each : plan_fold(call)) {
    each.wide ? run(each, std::integral_constant<int, kWide>())
              : run(each, std::integral_constant<int, kNarrow>());
  }
}

/// Each group slot with sums of its own, as leaders have them.
template <int E>
void run_norm(const NormTable& table) {
  std::array<std::array<int64_t, kNormSums>, kLanesOfWarp> sums = {};
  int run = 0;
  for_each_group<NormLane, E>(table.tiles, [&](auto& lanes, uint32_t tile, uint32_t slot) {
    while (tile >= table.run[run].end_tile) ++run;
    add_group_of_squares<Scalar, E>(lanes, table.run[run], tile, slot, sums[slot].data());
  });
  for (const auto& each : sums) {
    for (size_t i = 0; i < kNormSums; ++i) table.sums[i] += each[i];
  }
}
inline void exact_norm(const ExactNorm& call) {
  std::array<int64_t, kNormSums> sums = {};
  for (const NormTable& table : plan_norm(call.tensors, sums.data())) {
    table.wide ? run_norm<kWide>(table) : run_norm<kNarrow>(table);
  }
  numerics::merge_exact(call.limbs, std::span<const int64_t, numerics::kExactSumLimbs>(
                                        sums.data(), numerics::kExactSumLimbs));
  numerics::carry_exact(call.limbs);
  if (call.nonfinite_groups != nullptr) *call.nonfinite_groups += sums[numerics::kExactSumLimbs];
}

}  // namespace flashshard::cuda::emulation

#undef FLASHSHARD_FORMULA
