// Embedding lookup and its gradient.
#include "operation_test.h"

namespace flashshard::test {
namespace {

struct Shape {
  int64_t vocabulary, width, tokens;
};
constexpr Shape kShapes[] = {{1, 1, 1}, {7, 5, 3}, {200, 33, 64}, {130, 16, 500}};

class Embedding : public OperationTest {};

TEST_P(Embedding, CopiesARowForEachToken) {
  for (const auto& [vocabulary, width, tokens] : kShapes) {
    Array table = random_.array(dtype(), {vocabulary, width}), out(dtype(), {tokens, width});
    IntArray ids(random_.below(vocabulary, tokens));
    backend_->embedding({.out = out.tensor(), .table = table.tensor(), .tokens = ids.tensor()});
    const Values rows = table.values(), actual = out.values();
    for (int64_t i = 0; i < tokens * width; ++i) {
      ASSERT_EQ(actual[static_cast<size_t>(i)],
                rows[static_cast<size_t>(ids[i / width] * width + i % width)]);
    }
  }
}

TEST_P(Embedding, BackwardAddsEachTokensGradientToItsRow) {
  for (const DType gradient_dtype : {dtype(), DType::kFP32}) {
    for (const auto& [vocabulary, width, tokens] : kShapes) {
      Array grad_out = random_.array(dtype(), {tokens, width});
      Array grad_table = random_.array(gradient_dtype, {vocabulary, width});
      IntArray ids(random_.below(vocabulary, tokens));
      Values expected = grad_table.values();
      const Values upstream = grad_out.values();
      for (int64_t i = 0; i < tokens * width; ++i) {
        expected[static_cast<size_t>(ids[i / width] * width + i % width)] +=
            upstream[static_cast<size_t>(i)];
      }
      const EmbeddingBackward call = {
          .grad_table = grad_table.tensor(), .grad_out = grad_out.tensor(), .tokens = ids.tensor()};
      backend_.bind(call).embedding_backward(call);
      expect_close(grad_table.values(), expected, close(), "grad_table");
    }
  }
}

TEST_P(Embedding, SumsARowInFp32AndRoundsOnce) {
  // 256 ones and then a row of 1: in bf16 the sum would stop growing at 256.
  constexpr int64_t kTokens = 300;
  Array grad_out(dtype(), {kTokens, 1}, Values(kTokens, 1.0)),
      grad_table(dtype(), {2, 1}, {0.0, 3.5});
  IntArray ids(std::vector<int32_t>(kTokens, 0));
  const EmbeddingBackward call = {
      .grad_table = grad_table.tensor(), .grad_out = grad_out.tensor(), .tokens = ids.tensor()};
  backend_.bind(call).embedding_backward(call);
  EXPECT_EQ(grad_table.values(), (Values{300.0, 3.5}));
}

FLASHSHARD_FOR_ALL_SETUPS(Embedding);

}  // namespace
}  // namespace flashshard::test
