// Owned memory of one parameter in training, filled with the values of a model some steps into a
// run: what `bench optimizer` steps over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cpu/update_loops.h"
#include "kernels/numerics/update_args.h"

namespace flashshard::launch {

/// Zeroed memory on pages of its own, huge ones where there are any.
class PageMemory {
 public:
  PageMemory() = default;
  /// Throws std::bad_alloc.
  explicit PageMemory(size_t bytes);
  std::byte* data() const { return bytes_.get(); }
  size_t size() const { return size_; }

 private:
  struct Release {
    void operator()(std::byte* pointer) const;
  };
  std::unique_ptr<std::byte[], Release> bytes_;
  size_t size_ = 0;
};

/// bf16 gradients, normal with deviation 1e-3; every 2^16 elements the same.
PageMemory make_gradients(int64_t elements);

struct UpdateCase {
  Rule rule = Rule::kAdamW;
  StateFormat state = StateFormat::kCompanded;
  int master_bits = 24;
  Rounding rounding = Rounding::kStochastic;  // of V1: to nearest, always

  WeightFormat weight_format() const;
  RuleHyperparameters hyper() const { return {.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8}; }
};

/// Weights, normal with deviation 0.02, and states after a step on these gradients.
class UpdateMemory {
 public:
  UpdateMemory(const UpdateCase& which, int64_t elements, const PageMemory& gradients);

  const UpdateCase& which() const { return which_; }
  const UpdateTensor& tensor() const { return tensor_; }
  /// The constants of the next step.
  UpdateFactors next_factors();
  /// Bytes that a step reads and writes, for each element.
  double bytes_per_parameter() const;
  bool same_bits(const UpdateMemory& other) const;
  /// The largest difference between two masters, in learning rates.
  double largest_difference(const UpdateMemory& other) const;

 private:
  void* add(size_t bytes);
  std::vector<float> master() const;

  UpdateCase which_;
  std::vector<PageMemory> blocks_;
  UpdateTensor tensor_;
  uint64_t t_ = 0;
};

}  // namespace flashshard::launch
