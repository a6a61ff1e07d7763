#include "optim/shard_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "kernels/error.h"

namespace flashshard {

int64_t rows_per_unit(std::span<const RowQuantisation> tensors) {
  int64_t rows = 1;
  for (const auto& tensor : tensors) {
    // The smallest r with r * e divisible by group is group / gcd(e, group).
    const int64_t needed = tensor.group / std::gcd(tensor.elements_per_row, tensor.group);
    rows = std::lcm(rows, needed);
  }
  return rows;
}

ShardLayout::ShardLayout(std::vector<ParameterSpec> parameters, std::vector<int64_t> unit_rows,
                         int world_size)
    : parameters_(std::move(parameters)),
      unit_rows_(std::move(unit_rows)),
      world_size_(world_size) {
  if (world_size_ <= 0 || unit_rows_.size() != parameters_.size()) {
    throw Error(ExitCode::kInternal,
                "shard layout: one unit size per tensor and a positive world size");
  }
  for (size_t t = 0; t < parameters_.size(); ++t) {
    if (parameters_[t].rows <= 0 || parameters_[t].cols <= 0 || unit_rows_[t] <= 0) {
      throw Error(ExitCode::kInternal, "shard layout: empty tensor or unit", parameters_[t].name);
    }
  }
}

int64_t ShardLayout::units(int tensor) const {
  const int64_t unit = unit_rows(tensor);
  return (parameter(tensor).rows + unit - 1) / unit;
}

UnitRange ShardLayout::units_of(int tensor, int rank) const {
  const int64_t n = world_size_;
  const int64_t quotient = units(tensor) / n;
  const int64_t remainder = units(tensor) % n;
  // The rank at distance d behind t (mod N) takes one of the left-over units when d < remainder, so
  // that the left-overs of successive tensors go to successive ranks.
  const auto has_extra = [&](int64_t r) { return ((r - tensor) % n + n) % n < remainder; };
  // Ranks with an extra unit form a cyclic run [t, t + remainder) mod N; count those below `rank`.
  const int64_t start = tensor % n;
  const int64_t end = start + remainder;
  int64_t extras_below = std::clamp<int64_t>(std::min<int64_t>(rank, end) - start, 0, remainder);
  if (end > n) extras_below += std::min<int64_t>(rank, end - n);
  return {rank * quotient + extras_below, quotient + (has_extra(rank) ? 1 : 0)};
}

RowRange ShardLayout::rows_of(int tensor, ShardRange shards) const {
  const UnitRange first = units_of(tensor, shards.first);
  const UnitRange last = units_of(tensor, shards.end() - 1);
  return rows_of_units(tensor, {first.first, last.first + last.count - first.first});
}

RowRange ShardLayout::rows_of_units(int tensor, UnitRange range) const {
  const int64_t unit = unit_rows(tensor);
  const int64_t rows = parameter(tensor).rows;
  const int64_t first = std::min(range.first * unit, rows);
  const int64_t last = std::min((range.first + range.count) * unit, rows);
  return {first, last - first};
}

}  // namespace flashshard
