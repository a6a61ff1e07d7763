#include "kernels/cpu/update.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <mutex>
#include <vector>

#include "kernels/cpu/update_loops.h"
#include "kernels/numerics/exact_sum.h"

namespace flashshard::cpu {
namespace {

/// Elements that one call of an inner loop gets: enough to hide the call, little enough to share
/// out evenly.
constexpr int64_t kChunk = 512 * kGroup;

/// Calls body(begin, end) on chunks of [0, count) elements.
template <class Body>
void for_each_chunk(int64_t count, const ParallelFor& parallel_for, const Body& body) {
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  if (chunks == 0) return;
  parallel_for(chunks, [&](int64_t first, int64_t last) {
    body(first * kChunk, std::min(last * kChunk, count));
  });
}

struct TensorChunk {
  size_t tensor;
  int64_t begin, end;
};

/// Calls body(tensor index, begin, end) on chunks of many tensors; count_of(i) is the number of
/// elements of tensor i.
template <class CountOf, class Body>
void for_each_tensor_chunk(size_t tensors, const CountOf& count_of, const ParallelFor& parallel_for,
                           const Body& body) {
  std::vector<TensorChunk> chunks;
  for (size_t i = 0; i < tensors; ++i) {
    const int64_t count = count_of(i);
    for (int64_t begin = 0; begin < count; begin += kChunk)
      chunks.push_back({i, begin, std::min(begin + kChunk, count)});
  }
  if (chunks.empty()) return;
  parallel_for(static_cast<int64_t>(chunks.size()), [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const TensorChunk& chunk = chunks[static_cast<size_t>(c)];
      body(chunk.tensor, chunk.begin, chunk.end);
    }
  });
}

/// Counters are shared by the threads of a call.
void add_to(int64_t* counter, int64_t value) {
  if (counter != nullptr && value != 0)
    std::atomic_ref<int64_t>(*counter).fetch_add(value, std::memory_order_relaxed);
}

}  // namespace

void fold(const Fold& call, const ParallelFor& parallel_for) {
  assert(!call.inputs.empty());
  assert(!call.accumulate || call.out.dtype == DType::kFP32);
  for_each_chunk(call.out.elements(), parallel_for,
                 [&](int64_t begin, int64_t end) { update_loops().fold(call, begin, end); });
}

void exact_norm(const ExactNorm& call, const ParallelFor& parallel_for) {
  std::mutex mutex;
  for_each_tensor_chunk(
      call.tensors.size(), [&](size_t i) { return call.tensors[i].elements(); }, parallel_for,
      [&](size_t i, int64_t begin, int64_t end) {
        std::array<int64_t, numerics::kExactSumLimbs> limbs = {};
        const int64_t nonfinite = update_loops().exact_norm(call.tensors[i], begin, end, limbs);
        const std::lock_guard lock(mutex);
        numerics::merge_exact(call.limbs, limbs);
        numerics::carry_exact(call.limbs);
        if (call.nonfinite_groups != nullptr) *call.nonfinite_groups += nonfinite;
      });
}

void encode_master(const EncodeMaster& call, const ParallelFor& parallel_for) {
  for_each_chunk(call.count, parallel_for, [&](int64_t begin, int64_t end) {
    add_to(call.rejected_groups, update_loops().encode_master(call, begin, end));
  });
}

void decode_master(const DecodeMaster& call, const ParallelFor& parallel_for) {
  for_each_chunk(call.count, parallel_for, [&](int64_t begin, int64_t end) {
    update_loops().decode_master(call, begin, end);
  });
}

void encode_moment(const EncodeMoment& call, const ParallelFor& parallel_for) {
  assert(has_codes(call.format));
  for_each_chunk(call.count, parallel_for, [&](int64_t begin, int64_t end) {
    add_to(call.rejected_groups, update_loops().encode_moment(call, begin, end));
  });
}

void decode_moment(const DecodeMoment& call, const ParallelFor& parallel_for) {
  assert(has_codes(call.format));
  for_each_chunk(call.count, parallel_for, [&](int64_t begin, int64_t end) {
    update_loops().decode_moment(call, begin, end);
  });
}

void update(std::span<const UpdateTensor> tensors, const UpdateFactors& factors,
            const ParallelFor& parallel_for) {
  for_each_tensor_chunk(
      tensors.size(), [&](size_t i) { return tensors[i].count; }, parallel_for,
      [&](size_t i, int64_t begin, int64_t end) {
        assert(tensors[i].first_element % kGroup == 0);
        add_to(tensors[i].rejected_groups, update_loops().update(tensors[i], factors, begin, end));
      });
}

}  // namespace flashshard::cpu
