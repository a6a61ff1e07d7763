// The shard rule: who owns which rows of which tensor, at any world size (docs/sharding.md).
//
// A unit is the fewest whole rows such that rows x elements-per-row is a multiple of the
// quantisation group, for the weight and for every state tensor. The last unit of a tensor may be
// short. With U units, rank r of tensor t owns U/N + [((r - t) mod N) < U mod N] consecutive units,
// in rank order. No group and no row is ever cut.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "optim/parameter_spec.h"

namespace flashshard {

struct UnitRange {
  int64_t first = 0;
  int64_t count = 0;
};
struct RowRange {
  int64_t first = 0;
  int64_t count = 0;
};

/// Rows of one unit: the smallest r > 0 with r * e a multiple of `group` for every (e, group)
/// given.
struct RowQuantisation {
  int64_t elements_per_row = 0;
  int64_t group = 1;
};
int64_t rows_per_unit(std::span<const RowQuantisation> tensors);

/// Consecutive shards of a layout, by the numbers of their ranks in it.
struct ShardRange {
  int first = 0;
  int count = 1;

  int end() const { return first + count; }
};

class ShardLayout {
 public:
  /// `unit_rows[t]`: rows of a unit of tensor t. world_size > 0.
  ShardLayout(std::vector<ParameterSpec> parameters, std::vector<int64_t> unit_rows,
              int world_size);

  int world_size() const { return world_size_; }
  int tensors() const { return static_cast<int>(parameters_.size()); }
  const std::vector<ParameterSpec>& parameters() const { return parameters_; }
  const ParameterSpec& parameter(int tensor) const {
    return parameters_[static_cast<size_t>(tensor)];
  }
  int64_t unit_rows(int tensor) const { return unit_rows_[static_cast<size_t>(tensor)]; }
  int64_t units(int tensor) const;

  UnitRange units_of(int tensor, int rank) const;
  RowRange rows_of(int tensor, int rank) const {
    return rows_of_units(tensor, units_of(tensor, rank));
  }
  RowRange rows_of(int tensor, ShardRange shards) const;
  /// Rows of a run of units; the tensor's last unit may be short.
  RowRange rows_of_units(int tensor, UnitRange units) const;

 private:
  std::vector<ParameterSpec> parameters_;
  std::vector<int64_t> unit_rows_;
  int world_size_;
};

}  // namespace flashshard
