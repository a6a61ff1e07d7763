// The shard rule as properties: for many shapes and every world size from 1 to 17.
#include "optim/shard_layout.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/error.h"

namespace flashshard {
namespace {

struct Shape {
  int64_t rows, cols, unit_rows;
};

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (int64_t rows : {1, 2, 5, 31, 32, 33, 61, 64, 100, 257, 1000, 1031}) {
    for (int64_t cols : {1, 2, 3, 16, 31, 32, 48, 61, 96, 128}) {
      all.push_back({rows, cols, rows_per_unit(std::vector<RowQuantisation>{{cols, 32}})});
    }
  }
  return all;
}

ShardLayout layout_of(const std::vector<Shape>& all, int world_size) {
  std::vector<ParameterSpec> parameters;
  std::vector<int64_t> units;
  for (const Shape& shape : all) {
    ParameterSpec parameter;
    parameter.name = std::to_string(parameters.size());
    parameter.rows = shape.rows;
    parameter.cols = shape.cols;
    parameters.push_back(parameter);
    units.push_back(shape.unit_rows);
  }
  return ShardLayout(parameters, units, world_size);
}

TEST(RowsPerUnit, IsTheFewestWholeRowsThatFillGroups) {
  for (int64_t elements = 1; elements <= 200; ++elements) {
    for (int64_t group : {1, 32, 128, 256}) {
      const int64_t rows = rows_per_unit(std::vector<RowQuantisation>{{elements, group}});
      EXPECT_EQ(rows * elements % group, 0);
      for (int64_t fewer = 1; fewer < rows; ++fewer) ASSERT_NE(fewer * elements % group, 0);
    }
  }
}

TEST(RowsPerUnit, SatisfiesEveryTensorOfARule) {
  const std::vector<RowQuantisation> rule = {{48, 32}, {48, 1}, {6, 32}};
  EXPECT_EQ(rows_per_unit(rule), 16);  // 48 * 2 is a multiple of 32, 6 * 16 is the first one of 32
}

class ShardRule : public testing::TestWithParam<int> {};

TEST_P(ShardRule, CoversEveryRowOnceInRankOrder) {
  const auto all = shapes();
  const ShardLayout layout = layout_of(all, GetParam());
  for (int t = 0; t < layout.tensors(); ++t) {
    int64_t next_unit = 0, next_row = 0;
    for (int r = 0; r < GetParam(); ++r) {
      const UnitRange units = layout.units_of(t, r);
      const RowRange rows = layout.rows_of(t, r);
      ASSERT_EQ(units.first, next_unit);
      ASSERT_TRUE(rows.count == 0 || rows.first == next_row);
      next_unit += units.count;
      next_row += rows.count;
    }
    ASSERT_EQ(next_unit, layout.units(t));
    ASSERT_EQ(next_row, layout.parameter(t).rows);
  }
}

TEST_P(ShardRule, FollowsTheClosedFormOfTheDesign) {
  const int64_t n = GetParam();
  const ShardLayout layout = layout_of(shapes(), GetParam());
  for (int t = 0; t < layout.tensors(); ++t) {
    for (int r = 0; r < n; ++r) {
      const int64_t extra = ((r - t) % n + n) % n < layout.units(t) % n ? 1 : 0;
      ASSERT_EQ(layout.units_of(t, r).count, layout.units(t) / n + extra);
    }
  }
}

TEST_P(ShardRule, NeverCutsAGroupOfThirtyTwo) {
  const ShardLayout layout = layout_of(shapes(), GetParam());
  for (int t = 0; t < layout.tensors(); ++t) {
    for (int r = 0; r < GetParam(); ++r) {
      const RowRange rows = layout.rows_of(t, r);
      if (rows.count == 0) continue;
      ASSERT_EQ(rows.first * layout.parameter(t).cols % 32, 0);
      const int64_t end = (rows.first + rows.count) * layout.parameter(t).cols;
      ASSERT_TRUE(end % 32 == 0 || rows.first + rows.count == layout.parameter(t).rows);
    }
  }
}

TEST_P(ShardRule, SpreadsLeftOverUnitsOverRanks) {
  // Fifty tensors of N + 1 units: the left-over unit of tensor t goes to rank t mod N.
  const int n = GetParam();
  const ShardLayout layout = layout_of(std::vector<Shape>(50, Shape{n + 1, 32, 1}), n);
  std::vector<int64_t> rows(static_cast<size_t>(n), 0);
  for (int t = 0; t < layout.tensors(); ++t) {
    for (int r = 0; r < n; ++r) rows[static_cast<size_t>(r)] += layout.rows_of(t, r).count;
  }
  const auto [least, most] = std::minmax_element(rows.begin(), rows.end());
  EXPECT_LE(*most - *least, 1);
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, ShardRule, testing::Range(1, 18));

TEST(ShardLayout, RefusesEmptyTensors) {
  ParameterSpec parameter;
  parameter.name = "empty";
  EXPECT_THROW(ShardLayout({parameter}, {1}, 2), Error);
  parameter.rows = 4;
  EXPECT_THROW(ShardLayout({parameter}, {0}, 2), Error);
  EXPECT_THROW(ShardLayout({parameter}, {1}, 0), Error);
}

}  // namespace
}  // namespace flashshard
