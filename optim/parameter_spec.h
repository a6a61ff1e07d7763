// What the optimizer layer, the checkpoint and the ledger know about a model: a list of these and
// nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace flashshard {

enum class ParameterRole : uint8_t { kMatrix, kVector, kEmbedding };

/// One of several matrices stored as one tensor: q, k, v; gate, up. Rows of the whole.
struct ParameterPart {
  std::string name;  // the part's own full name, e.g. "model.layers.0.self_attn.q_proj.weight"
  int64_t first_row = 0;
  int64_t rows = 0;
};

/// A stored tensor, `rows x cols`, row-major; a vector is `n x 1`.
struct ParameterSpec {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 1;
  ParameterRole role = ParameterRole::kMatrix;
  bool decay = true;
  int layer = 0;  // 0: before the first block, 1..L: blocks, L+1: after them. A bucket never
                  // crosses a layer.
  std::vector<ParameterPart> parts;  // empty: the tensor is one matrix
  std::vector<std::string>
      tied_names;  // further names under which a model exports the same storage (lm_head)

  int64_t elements() const { return rows * cols; }
};

}  // namespace flashshard
