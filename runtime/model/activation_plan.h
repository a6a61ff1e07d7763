// Where activations lie in one region of memory. What a pass computes and in which order is known
// before a run, hence when each tensor is first and last used; tensors that are never live together
// share bytes. As ROAM does for general graphs (arXiv 2310.19295), with the greedy best fit of
// arXiv 2001.03288.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace flashshard {

/// A tensor and the steps of a pass, both included, between which it holds something.
struct PlannedTensor {
  std::string name;
  int64_t bytes = 0;
  int first_step = 0;
  int last_step = 0;
  int64_t offset = 0;  // from the start of the region, a multiple of kAlignment; the plan's answer

  bool is_live_with(const PlannedTensor& other) const {
    return first_step <= other.last_step && other.first_step <= last_step;
  }
};

class ActivationPlan {
 public:
  static constexpr int64_t kAlignment = 256;

  ActivationPlan() = default;
  /// Assigns the offsets: one tensor after the other into the smallest gap that holds it between
  /// those that are live with it, in order of size, of lifetime, and of their product; the tensor
  /// that ends highest moves to the front for another try. The best of all is taken. Throws
  /// Error(kInternal) on a lifetime that ends before it begins.
  explicit ActivationPlan(std::vector<PlannedTensor> tensors);

  /// In the order given.
  std::span<const PlannedTensor> tensors() const { return tensors_; }
  /// Size of the region.
  int64_t bytes() const { return bytes_; }
  /// What no plan can be below: the largest sum of bytes, each rounded up to kAlignment, that are
  /// live at one step.
  int64_t lower_bound() const;

 private:
  std::vector<PlannedTensor> tensors_;
  int64_t bytes_ = 0;
};

}  // namespace flashshard
