// Chunked head and loss: one chunk, several chunks, several blocks of tokens, targets that do not
// count.
#include "operation_test.h"

namespace flashshard::test {
namespace {

struct Shape {
  int64_t tokens, width, vocabulary;
};

double loss(const Shape& s, const Values& hidden, const Values& weight, const IntArray& targets) {
  double sum = 0;
  Values logits(static_cast<size_t>(s.vocabulary));
  for (int64_t t = 0; t < s.tokens; ++t) {
    if (targets[t] < 0) continue;
    const double* h = &hidden[static_cast<size_t>(t * s.width)];
    double total = 0;
    for (int64_t v = 0; v < s.vocabulary; ++v) {
      const double logit =
          std::inner_product(h, h + s.width, &weight[static_cast<size_t>(v * s.width)], 0.0);
      logits[static_cast<size_t>(v)] = logit;
      total += std::exp(logit);
    }
    sum += std::log(total) - logits[static_cast<size_t>(targets[t])];
  }
  return sum;
}

struct Gradients {
  Values hidden, weight;
};

/// Analytic float64 gradients, for shapes too large for finite differences. ANALYTIC is itself
/// checked against them.
Gradients gradients(const Shape& s, const Values& hidden, const Values& weight,
                    const IntArray& targets) {
  Gradients result = {Values(hidden.size()), Values(weight.size())};
  Values p(static_cast<size_t>(s.vocabulary));
  for (int64_t t = 0; t < s.tokens; ++t) {
    if (targets[t] < 0) continue;
    const auto row = static_cast<size_t>(t * s.width);
    double total = 0;
    for (int64_t v = 0; v < s.vocabulary; ++v) {
      const double* w = &weight[static_cast<size_t>(v * s.width)];
      total += p[static_cast<size_t>(v)] =
          std::exp(std::inner_product(w, w + s.width, &hidden[row], 0.0));
    }
    for (int64_t v = 0; v < s.vocabulary; ++v) {
      const double g = p[static_cast<size_t>(v)] / total - (targets[t] == v ? 1 : 0);
      for (size_t i = 0; i < static_cast<size_t>(s.width); ++i) {
        const size_t w = static_cast<size_t>(v * s.width) + i;
        result.hidden[row + i] += g * weight[w];
        result.weight[w] += g * hidden[row + i];
      }
    }
  }
  return result;
}

struct Problem {
  Problem(const Shape& shape, DType dtype, DType gradient_dtype, Random& random)
      : s(shape),
        hidden(random.array(dtype, {s.tokens, s.width})),
        weight(random.array(dtype, {s.vocabulary, s.width}, 0.5)),
        targets(some_ignored(random.below(s.vocabulary, s.tokens))),
        grad_hidden(random.array(dtype, {s.tokens, s.width})),
        grad_weight(random.array(gradient_dtype, {s.vocabulary, s.width})) {}

  static std::vector<int32_t> some_ignored(std::vector<int32_t> targets) {
    for (size_t i = 2; i < targets.size(); i += 5) targets[i] = -1;
    return targets;
  }
  CrossEntropy call() {
    return {.loss_sum = &loss_sum,
            .token_count = &token_count,
            .hidden = hidden.tensor(),
            .weight = weight.tensor(),
            .targets = targets.tensor(),
            .grad_hidden = grad_hidden.tensor(),
            .grad_weight = grad_weight.tensor(),
            .accumulate_weight = false};
  }
  CrossEntropy loss_alone() {
    CrossEntropy result = call();
    result.grad_hidden = {};
    result.grad_weight = {};
    return result;
  }

  Shape s;
  Array hidden, weight;
  IntArray targets;
  Array grad_hidden, grad_weight;
  double loss_sum = -1;
  int64_t token_count = -1;
};

constexpr Shape kSmall[] = {{1, 1, 2}, {7, 5, 3}, {13, 33, 37}, {40, 16, 256}};
// 20,000 columns are five chunks, the last one short.
constexpr Shape kSeveralChunks = {9, 6, 20000};
// 6,000 columns are one chunk, of which 16 MiB hold fewer than 400 tokens in both storage types.
constexpr Shape kSeveralBlocks = {400, 2, 6000};

class CrossEntropyLoss : public OperationTest {
 protected:
  /// dlogits are stored as activations are, so a bf16 gradient is a sum of rounded terms.
  Tolerance close_sum() const {
    return dtype() == DType::kBF16 ? Tolerance{0.0045, 0.01} : close();
  }
};

TEST_P(CrossEntropyLoss, SumsTheLossOfCountedTokens) {
  for (const Shape& s :
       {kSmall[0], kSmall[1], kSmall[2], kSmall[3], kSeveralChunks, kSeveralBlocks}) {
    Problem p(s, dtype(), dtype(), random_);
    const CrossEntropy call = p.loss_alone();
    backend_.bind(call).cross_entropy(call);
    const double expected = loss(s, p.hidden.values(), p.weight.values(), p.targets);
    EXPECT_NEAR(p.loss_sum, expected,
                1e-6 * static_cast<double>(s.tokens) * (1 + std::abs(expected)));
    int64_t counted = 0;
    for (int64_t t = 0; t < s.tokens; ++t) counted += p.targets[t] >= 0 ? 1 : 0;
    EXPECT_EQ(p.token_count, counted);
  }
}

TEST_P(CrossEntropyLoss, GradientsAreThoseOfTheSum) {
  for (const DType gradient_dtype : {dtype(), DType::kFP32}) {
    for (const Shape& s : kSmall) {
      Problem p(s, dtype(), gradient_dtype, random_);
      const CrossEntropy call = p.call();
      backend_.bind(call).cross_entropy(call);
      const Values hidden = p.hidden.values(), weight = p.weight.values();
      expect_gradient(
          p.grad_hidden.values(), [&](const Values& v) { return loss(s, v, weight, p.targets); },
          hidden, close_sum(), "grad_hidden");
      expect_gradient(
          p.grad_weight.values(), [&](const Values& v) { return loss(s, hidden, v, p.targets); },
          weight, close_sum(), "grad_weight");
    }
  }
}

TEST_P(CrossEntropyLoss, ChunksAndBlocksGiveTheSameGradientsAsAllAtOnce) {
  for (const Shape& s : {kSeveralChunks, kSeveralBlocks}) {
    Problem p(s, dtype(), dtype(), random_);
    const Gradients once = gradients(s, p.hidden.values(), p.weight.values(), p.targets);
    for (const bool accumulate : {false, true}) {
      CrossEntropy call = p.call();
      call.accumulate_weight = accumulate;
      Values expected_weight = once.weight;
      const Values before = p.grad_weight.values();
      for (size_t i = 0; i < before.size() && accumulate; ++i) expected_weight[i] += before[i];
      backend_.bind(call).cross_entropy(call);
      expect_close(p.grad_hidden.values(), once.hidden, close_sum(), "grad_hidden");
      expect_close(p.grad_weight.values(), expected_weight, close_sum(), "grad_weight");
    }
  }
}

TEST_P(CrossEntropyLoss, WithoutACountedTokenEverythingIsZero) {
  Problem p({3, 4, 5}, dtype(), dtype(), random_);
  p.targets = IntArray({-1, -1, -1});
  const CrossEntropy call = p.call();
  backend_.bind(call).cross_entropy(call);
  EXPECT_EQ(p.loss_sum, 0.0);
  EXPECT_EQ(p.token_count, 0);
  EXPECT_EQ(p.grad_hidden.values(), Values(12, 0.0));
  EXPECT_EQ(p.grad_weight.values(), Values(20, 0.0));
}

TEST_P(CrossEntropyLoss, ANanInTheHiddenStateMakesTheLossNan) {
  Problem p({3, 4, 5}, dtype(), dtype(), random_);
  p.hidden.set(0, std::nan(""));
  const CrossEntropy call = p.call();
  backend_.bind(call).cross_entropy(call);
  EXPECT_TRUE(std::isnan(p.loss_sum));
  EXPECT_TRUE(std::isnan(p.grad_weight.values()[0]));
}

TEST_P(CrossEntropyLoss, ScratchStaysBoundedForALargeVocabulary) {
  const Tensor hidden(nullptr, dtype(), {4096, 1024}), weight(nullptr, dtype(), {128256, 1024});
  CrossEntropy call;
  call.hidden = call.grad_hidden = hidden;
  call.weight = call.grad_weight = weight;
  call.targets = Tensor(nullptr, DType::kINT32, {4096});
  const size_t grad_hidden_sum = 4096 * 1024 * 4, grad_weight_sum = 4096 * 1024 * 4;
  EXPECT_LT(backend_->workspace_bytes(call),
            (size_t{16} << 20) + grad_hidden_sum + grad_weight_sum +
                static_cast<size_t>(GetParam().threads) * (size_t{10} << 20));
}

FLASHSHARD_FOR_ALL_SETUPS(CrossEntropyLoss);

TEST(CrossEntropyReference, AnalyticGradientsAgreeWithFiniteDifferences) {
  Random random;
  Problem p({6, 5, 11}, DType::kFP32, DType::kFP32, random);
  const Values hidden = p.hidden.values(), weight = p.weight.values();
  const Gradients analytic = gradients(p.s, hidden, weight, p.targets);
  expect_gradient(
      analytic.hidden, [&](const Values& v) { return loss(p.s, v, weight, p.targets); }, hidden,
      {1e-6, 1e-6}, "grad_hidden");
  expect_gradient(
      analytic.weight, [&](const Values& v) { return loss(p.s, hidden, v, p.targets); }, weight,
      {1e-6, 1e-6}, "grad_weight");
}

}  // namespace
}  // namespace flashshard::test
