#include "runtime/model/activation_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "kernels/error.h"

namespace flashshard {
namespace {

int64_t aligned(int64_t bytes) {
  return (bytes + ActivationPlan::kAlignment - 1) / ActivationPlan::kAlignment *
         ActivationPlan::kAlignment;
}

void check(const PlannedTensor& tensor) {
  if (tensor.bytes >= 0 && tensor.first_step >= 0 && tensor.first_step <= tensor.last_step) return;
  throw Error(ExitCode::kInternal,
              fmt::format("{} of {} bytes cannot live from step {} to step {}", tensor.name,
                          tensor.bytes, tensor.first_step, tensor.last_step),
              "ActivationPlan");
}

/// Of equal sizes the longer lifetime comes first: what lives long lies low, what comes and goes
/// above it.
bool goes_before(const PlannedTensor& a, const PlannedTensor& b) {
  const auto key = [](const PlannedTensor& t) {
    return std::pair(aligned(t.bytes), t.last_step - t.first_step);
  };
  return key(a) > key(b);
}

}  // namespace

ActivationPlan::ActivationPlan(std::vector<PlannedTensor> tensors) : tensors_(std::move(tensors)) {
  std::for_each(tensors_.begin(), tensors_.end(), check);
  std::vector<size_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return goes_before(tensors_[a], tensors_[b]); });
  std::vector<const PlannedTensor*> placed;  // by offset
  placed.reserve(tensors_.size());
  for (const size_t index : order) place(tensors_[index], placed);
}

void ActivationPlan::place(PlannedTensor& tensor, std::vector<const PlannedTensor*>& placed) {
  const int64_t size = aligned(tensor.bytes);
  int64_t end = 0;  // of the neighbours seen so far
  int64_t smallest_gap = std::numeric_limits<int64_t>::max();
  int64_t best = -1;
  for (const PlannedTensor* neighbour : placed) {
    if (!neighbour->is_live_with(tensor)) continue;
    const int64_t gap = neighbour->offset - end;
    if (gap >= size && gap < smallest_gap) {
      smallest_gap = gap;
      best = end;
    }
    end = std::max(end, neighbour->offset + aligned(neighbour->bytes));
  }
  tensor.offset = best >= 0 ? best : end;
  bytes_ = std::max(bytes_, tensor.offset + size);
  const auto by_offset = [](const PlannedTensor* a, const PlannedTensor* b) {
    return a->offset < b->offset;
  };
  placed.insert(std::upper_bound(placed.begin(), placed.end(), &tensor, by_offset), &tensor);
}

int64_t ActivationPlan::lower_bound() const {
  std::map<int, int64_t> change;  // of the live bytes, by step
  for (const PlannedTensor& tensor : tensors_) {
    change[tensor.first_step] += aligned(tensor.bytes);
    change[tensor.last_step + 1] -= aligned(tensor.bytes);
  }
  int64_t live = 0, most = 0;
  for (const auto& [step, difference] : change) {
    live += difference;
    most = std::max(most, live);
  }
  return most;
}

}  // namespace flashshard
