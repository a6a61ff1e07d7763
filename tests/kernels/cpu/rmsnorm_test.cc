// RMSNorm, fused with the residual addition: against a float64 reference and its finite
// differences.
#include "operation_test.h"

namespace flashshard::test {
namespace {

constexpr double kEpsilon = 1e-5;

Values rmsnorm(const Values& x, const Values& weight) {
  const size_t width = weight.size();
  Values out(x.size());
  for (size_t row = 0; row < x.size(); row += width) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += x[row + i] * x[row + i];
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(width) + kEpsilon);
    for (size_t i = 0; i < width; ++i) out[row + i] = x[row + i] * inverse * weight[i];
  }
  return out;
}

struct Shape {
  int64_t tokens, width;
};
constexpr Shape kShapes[] = {{1, 1}, {3, 5}, {7, 16}, {5, 48}, {300, 33}, {2, 128}};

class RmsNorm : public OperationTest {};

TEST_P(RmsNorm, NormalisesEachRow) {
  for (const auto& [tokens, width] : kShapes) {
    Array x = random_.array(dtype(), {tokens, width}), weight = random_.array(dtype(), {width});
    Array out(dtype(), {tokens, width}), inverse(DType::kFP32, {tokens});
    backend_->rmsnorm({.out = out.tensor(),
                       .inverse_rms = inverse.tensor(),
                       .sum = {},
                       .x = x.tensor(),
                       .delta = {},
                       .weight = weight.tensor(),
                       .epsilon = static_cast<float>(kEpsilon)});
    expect_close(out.values(), rmsnorm(x.values(), weight.values()), close(), "out");
    double squares = 0;
    for (size_t i = 0; i < static_cast<size_t>(width); ++i)
      squares += x.values()[i] * x.values()[i];
    EXPECT_NEAR(inverse.values()[0] * std::sqrt(squares / static_cast<double>(width) + kEpsilon),
                1.0, 1e-5);
  }
}

TEST_P(RmsNorm, AddsTheResidualFirstAndNormalisesWhatItStored) {
  for (const auto& [tokens, width] : kShapes) {
    Array x = random_.array(dtype(), {tokens, width}),
          delta = random_.array(dtype(), {tokens, width}, 0.3);
    Array weight = random_.array(dtype(), {width}), out(dtype(), {tokens, width});
    Array inverse(DType::kFP32, {tokens});
    Values sum = x.values();
    const Values added = delta.values();
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += added[i];
    backend_->rmsnorm({.out = out.tensor(),
                       .inverse_rms = inverse.tensor(),
                       .sum = x.tensor(),  // in place
                       .x = x.tensor(),
                       .delta = delta.tensor(),
                       .weight = weight.tensor(),
                       .epsilon = static_cast<float>(kEpsilon)});
    expect_close(x.values(), sum, close(), "sum");
    expect_close(out.values(), rmsnorm(x.values(), weight.values()), close(), "out");
  }
}

TEST_P(RmsNorm, BackwardAddsTheGradientsOfInputAndWeight) {
  for (const DType gradient_dtype : {dtype(), DType::kFP32}) {
    for (const auto& [tokens, width] : kShapes) {
      Array x = random_.array(dtype(), {tokens, width}), weight = random_.array(dtype(), {width});
      Array out(dtype(), {tokens, width}), inverse(DType::kFP32, {tokens});
      Array grad_out = random_.array(dtype(), {tokens, width});
      backend_->rmsnorm({.out = out.tensor(),
                         .inverse_rms = inverse.tensor(),
                         .sum = {},
                         .x = x.tensor(),
                         .delta = {},
                         .weight = weight.tensor(),
                         .epsilon = static_cast<float>(kEpsilon)});
      Array grad_x = random_.array(dtype(), {tokens, width}),
            grad_weight = random_.array(gradient_dtype, {width});
      const Values x_before = grad_x.values(), weight_before = grad_weight.values();
      const RmsNormBackward call = {.grad_x = grad_x.tensor(),
                                    .grad_weight = grad_weight.tensor(),
                                    .grad_out = grad_out.tensor(),
                                    .x = x.tensor(),
                                    .inverse_rms = inverse.tensor(),
                                    .weight = weight.tensor()};
      backend_.bind(call).rmsnorm_backward(call);
      const Values upstream = grad_out.values(), xs = x.values(), ws = weight.values();
      // The residual's gradient is a linear term of the function differentiated.
      expect_gradient(
          grad_x.values(),
          [&](const Values& v) { return dot(rmsnorm(v, ws), upstream) + dot(v, x_before); }, xs,
          close(), "grad_x");
      expect_gradient(
          grad_weight.values(),
          [&](const Values& v) { return dot(rmsnorm(xs, v), upstream) + dot(v, weight_before); },
          ws, close(), "grad_weight");
    }
  }
}

FLASHSHARD_FOR_ALL_SETUPS(RmsNorm);

}  // namespace
}  // namespace flashshard::test
