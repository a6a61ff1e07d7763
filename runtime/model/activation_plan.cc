#include "runtime/model/activation_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "kernels/error.h"

namespace flashshard {
namespace {

/// Bounds the time spent on looking for a better plan of many tensors: a fraction of a second.
constexpr int64_t kComparisons = int64_t{1} << 26;

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

/// What is placed first: no one order is the best for every graph, and a plan is made once.
enum class Order : uint8_t { kSize, kLifetime, kArea };

/// The larger goes before the smaller.
std::pair<int64_t, int64_t> rank_in(Order order, const PlannedTensor& t) {
  const int64_t size = aligned(t.bytes);
  const int64_t steps = t.last_step - t.first_step + 1;
  switch (order) {
    case Order::kSize:
      return {size, steps};
    case Order::kLifetime:
      return {steps, size};
    default:
      return {size * steps, size};
  }
}

/// Tensors in the order in which they are placed.
using Queue = std::vector<PlannedTensor*>;

Queue sorted(std::vector<PlannedTensor>& tensors, Order order) {
  Queue queue;
  for (PlannedTensor& tensor : tensors) queue.push_back(&tensor);
  std::stable_sort(queue.begin(), queue.end(), [order](const auto* a, const auto* b) {
    return rank_in(order, *a) > rank_in(order, *b);
  });
  return queue;
}

/// The lowest end of the smallest gap that holds the tensor between its neighbours, those of
/// `placed` (by offset) that are live with it.
int64_t best_fit(const PlannedTensor& tensor, const Queue& placed) {
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
  return best >= 0 ? best : end;
}

int64_t end_of(const PlannedTensor& tensor) { return tensor.offset + aligned(tensor.bytes); }

/// Places all; returns the place in the queue of the one that ends highest.
Queue::iterator place(Queue& queue) {
  const auto by_offset = [](const PlannedTensor* a, const PlannedTensor* b) {
    return a->offset < b->offset;
  };
  Queue placed;
  placed.reserve(queue.size());
  for (PlannedTensor* tensor : queue) {
    tensor->offset = best_fit(*tensor, placed);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), tensor, by_offset), tensor);
  }
  return std::max_element(queue.begin(), queue.end(),
                          [](const auto* a, const auto* b) { return end_of(*a) < end_of(*b); });
}

}  // namespace

ActivationPlan::ActivationPlan(std::vector<PlannedTensor> tensors) : tensors_(std::move(tensors)) {
  if (tensors_.empty()) return;
  std::for_each(tensors_.begin(), tensors_.end(), check);
  const int64_t least = lower_bound();
  const auto count = static_cast<int64_t>(tensors_.size());
  const int64_t rounds = std::clamp(kComparisons / (count * count), int64_t{1}, int64_t{128});
  std::vector<PlannedTensor> candidate = tensors_;
  bytes_ = std::numeric_limits<int64_t>::max();
  for (const Order order : {Order::kSize, Order::kLifetime, Order::kArea}) {
    Queue queue = sorted(candidate, order);
    for (int64_t round = 0; round < rounds && bytes_ > least; ++round) {
      const auto highest = place(queue);
      if (end_of(**highest) < bytes_) {
        bytes_ = end_of(**highest);
        tensors_ = candidate;
      }
      std::rotate(queue.begin(), highest, highest + 1);
    }
  }
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
