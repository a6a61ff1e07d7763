// The tensors of a model as other programs name them: parts that are stored together here (q, k, v;
// gate, up) are tensors of their own there.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "optim/parameter_spec.h"
#include "optim/shard_layout.h"

namespace flashshard::exchange {

struct ModelTensor {
  std::string name;
  int tensor = 0;  // the parameter that holds it, and its rows in there
  RowRange rows;
  std::vector<int64_t> shape;  // {rows, cols}, or {rows} of a vector

  int64_t cols() const { return shape.size() == 1 ? 1 : shape[1]; }
  int64_t elements() const { return rows.count * cols(); }
};

/// In the model's order; a tied output layer is not repeated.
std::vector<ModelTensor> tensors_of(std::span<const ParameterSpec> parameters);

/// Rows of `tensor` in pieces of about 2^18 elements (a mebibyte of fp32), in order: calls
/// `take(rows)` with rows of the parameter.
template <class Take>
void for_each_piece(const ModelTensor& tensor, Take take) {
  constexpr int64_t kElements = int64_t{1} << 18;
  const int64_t most = kElements < tensor.cols() ? 1 : kElements / tensor.cols();
  for (int64_t done = 0; done < tensor.rows.count; done += most) {
    const int64_t left = tensor.rows.count - done;
    take(RowRange{tensor.rows.first + done, left < most ? left : most});
  }
}

}  // namespace flashshard::exchange
