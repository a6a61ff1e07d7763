// Bucket plans: every owned row travels exactly once, layers are never mixed, large tensors are cut
// evenly.
#include "optim/buckets.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

namespace flashshard {
namespace {

ParameterSpec parameter(const std::string& name, int64_t rows, int64_t cols, int layer) {
  ParameterSpec spec;
  spec.name = name;
  spec.rows = rows;
  spec.cols = cols;
  spec.layer = layer;
  return spec;
}

ShardLayout example(int world_size) {
  std::vector<ParameterSpec> parameters = {parameter("embedding", 1000, 48, 0)};
  for (int layer = 1; layer <= 3; ++layer) {
    const std::string prefix = std::to_string(layer);
    parameters.push_back(parameter(prefix + ".norm", 48, 1, layer));
    parameters.push_back(parameter(prefix + ".qkv", 96, 48, layer));
    parameters.push_back(parameter(prefix + ".down", 48, 130, layer));
  }
  parameters.push_back(parameter("norm", 48, 1, 4));
  std::vector<int64_t> units;
  for (const auto& p : parameters) {
    units.push_back(rows_per_unit(std::vector<RowQuantisation>{{p.cols, 32}}));
  }
  return ShardLayout(parameters, units, world_size);
}

struct Case {
  int world_size;
  int64_t bucket_bytes;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.world_size << " ranks, buckets of " << c.bucket_bytes;
}

class Plans : public testing::TestWithParam<Case> {};

TEST_P(Plans, CarryEveryRowOfEveryRankExactlyOnce) {
  const ShardLayout layout = example(GetParam().world_size);
  const BucketPlan plan(layout, GetParam().bucket_bytes, 2);
  for (int t = 0; t < layout.tensors(); ++t) {
    for (int r = 0; r < GetParam().world_size; ++r) {
      std::multiset<int64_t> rows;
      for (const Bucket& bucket : plan.buckets()) {
        for (const BucketSegment& segment : bucket.segments) {
          if (segment.tensor != t) continue;
          const RowRange range = plan.rows(segment, r);
          for (int64_t i = 0; i < range.count; ++i) rows.insert(range.first + i);
        }
      }
      const RowRange own = layout.rows_of(t, r);
      ASSERT_EQ(static_cast<int64_t>(rows.size()), own.count);
      for (int64_t i = 0; i < own.count; ++i) ASSERT_EQ(rows.count(own.first + i), 1u);
    }
  }
}

TEST_P(Plans, NeverCrossALayerAndComeInBackwardOrder) {
  const ShardLayout layout = example(GetParam().world_size);
  const BucketPlan plan(layout, GetParam().bucket_bytes, 2);
  int previous = 1000;
  for (const Bucket& bucket : plan.buckets()) {
    EXPECT_LE(bucket.layer, previous);
    previous = bucket.layer;
    for (const BucketSegment& segment : bucket.segments) {
      EXPECT_EQ(layout.parameter(segment.tensor).layer, bucket.layer);
    }
  }
  EXPECT_EQ(plan.buckets().front().layer, 4);
  EXPECT_EQ(plan.buckets().back().layer, 0);  // tied embeddings close last
}

TEST_P(Plans, CloseAtBucketBytesUnlessOneUnitPerRankIsMore) {
  const ShardLayout layout = example(GetParam().world_size);
  const BucketPlan plan(layout, GetParam().bucket_bytes, 2);
  for (const Bucket& bucket : plan.buckets()) {
    if (bucket.segments.size() > 1) {
      EXPECT_LE(bucket.elements * 2, GetParam().bucket_bytes);
      continue;
    }
    // A tensor alone, or a slice: at most one unit of each rank more.
    const int t = bucket.segments[0].tensor;
    const int64_t unit = layout.unit_rows(t) * layout.parameter(t).cols;
    EXPECT_LE(bucket.elements * 2, GetParam().bucket_bytes + 2 * unit * GetParam().world_size);
  }
}

TEST_P(Plans, RangesStandOneBehindTheOther) {
  const ShardLayout layout = example(GetParam().world_size);
  const BucketPlan plan(layout, GetParam().bucket_bytes, 2);
  for (const Bucket& bucket : plan.buckets()) {
    size_t offset = 0;
    const auto shards = ShardPlacement({}, GetParam().world_size, 0).owned_by_all();
    const auto ranges = plan.ranges(bucket, shards, 4);
    for (int r = 0; r < GetParam().world_size; ++r) {
      EXPECT_EQ(ranges[static_cast<size_t>(r)].offset, offset);
      EXPECT_EQ(ranges[static_cast<size_t>(r)].size,
                static_cast<size_t>(plan.elements_of(bucket, r)) * 4);
      offset += ranges[static_cast<size_t>(r)].size;
    }
    EXPECT_EQ(offset, static_cast<size_t>(bucket.elements) * 4);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, Plans,
                         testing::Values(Case{1, 64 << 20}, Case{1, 1}, Case{2, 4096},
                                         Case{3, 10000}, Case{4, 20000}, Case{5, 1000},
                                         Case{8, 64 << 20}, Case{17, 8192}));

TEST(BucketPlan, KeepsRanksEquallyBusyInEverySliceOfALargeTensor) {
  const ShardLayout layout({parameter("embedding", 64000, 32, 0)}, {1}, 4);
  const BucketPlan plan(layout, 256 << 10, 2);
  ASSERT_GT(plan.buckets().size(), 10u);
  for (const Bucket& bucket : plan.buckets()) {
    for (int r = 1; r < 4; ++r) {
      EXPECT_NEAR(static_cast<double>(plan.elements_of(bucket, r)),
                  static_cast<double>(plan.elements_of(bucket, 0)), 32);
    }
  }
}

}  // namespace
}  // namespace flashshard
