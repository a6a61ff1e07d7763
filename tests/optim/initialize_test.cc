// Fresh weights are drawn in pieces of bounded host memory; neither the pieces nor the world size
// show in the weights.
#include <gtest/gtest.h>

#include <cstring>

#include "optim/ledger.h"
#include "optim/sharded_optimizer.h"
#include "tests/optim/ranks.h"

namespace flashshard {
namespace {

constexpr int64_t kRows = 70001;  // x 64: more than a piece on one rank, less on three
constexpr int64_t kCols = 64;
constexpr int64_t kPiece = int64_t{1} << 22;  // elements

struct Fresh {
  std::vector<uint16_t> weight;
  int64_t largest_call = 0;  // elements
  int calls = 0;             // of rank 0
};

Fresh initialized_on(int world_size) {
  Fresh fresh;
  test::run_ranks(world_size, [&](Communicator& communicator) {
    ParameterSpec table;
    table.name = "embedding";
    table.rows = kRows;
    table.cols = kCols;
    table.role = ParameterRole::kEmbedding;
    const auto backend = make_cpu_backend({1});
    MemoryLedger ledger(*backend);
    ElementwiseOptions options;
    options.rule = Rule::kSGD;  // without momentum: weights and corrections alone
    options.hyper.beta1 = 0;
    const auto rule = make_elementwise_rule(*backend, options);
    const ShardLayout layout({table}, {unit_rows_of(*rule, table)}, world_size);
    ShardedState state(ledger, layout, *rule, communicator.rank(), DType::kBF16, {});
    const BucketPlan plan(layout, int64_t{64} << 20, 2);
    Gradients gradients(ledger, plan, communicator.rank(), {});
    ShardGroups groups(communicator, gradients.placement());
    ShardedOptimizer optimizer(groups, ledger, state, gradients, *rule, {});
    int64_t largest = 0;
    int calls = 0;
    optimizer.initialize([&](int, RowRange rows, std::span<float> out) {
      ASSERT_EQ(static_cast<int64_t>(out.size()), rows.count * kCols);
      for (size_t i = 0; i < out.size(); ++i) {
        out[i] = 1e-6f * static_cast<float>(rows.first * kCols + static_cast<int64_t>(i));
      }
      largest = std::max(largest, static_cast<int64_t>(out.size()));
      ++calls;
    });
    if (communicator.rank() != 0) return;
    const auto* weight = optimizer.model_weights()[0].as<uint16_t>();
    fresh = {{weight, weight + kRows * kCols}, largest, calls};
  });
  return fresh;
}

TEST(Initialize, PiecesAndRanksLeaveTheSameWeights) {
  const Fresh one = initialized_on(1);
  const Fresh three = initialized_on(3);
  EXPECT_EQ(one.calls, 2);
  EXPECT_EQ(three.calls, 1);
  EXPECT_LE(one.largest_call, kPiece);
  ASSERT_EQ(one.weight.size(), three.weight.size());
  EXPECT_EQ(0, std::memcmp(one.weight.data(), three.weight.data(),
                           one.weight.size() * sizeof(one.weight[0])));
  EXPECT_EQ(one.weight[0], 0);
  EXPECT_NE(one.weight.back(), 0);
}

}  // namespace
}  // namespace flashshard
