// SwiGLU and the vectorised exponential behind it.
#include "operation_test.h"

namespace flashshard::test {
namespace {

Values swiglu(const Values& gate_up, size_t width) {
  Values out;
  for (size_t row = 0; row < gate_up.size(); row += 2 * width) {
    for (size_t i = 0; i < width; ++i) {
      const double gate = gate_up[row + i];
      out.push_back(gate / (1 + std::exp(-gate)) * gate_up[row + width + i]);
    }
  }
  return out;
}

struct Shape {
  int64_t tokens, width;
};
constexpr Shape kShapes[] = {{1, 1}, {4, 16}, {3, 21}, {9, 64}, {2, 131}};

class SwiGlu : public OperationTest {};

TEST_P(SwiGlu, MultipliesTheGateActivationByUp) {
  for (const auto& [tokens, width] : kShapes) {
    Array gate_up = random_.array(dtype(), {tokens, 2 * width}, 2.0), out(dtype(), {tokens, width});
    backend_->swiglu({.out = out.tensor(), .gate_up = gate_up.tensor()});
    expect_close(out.values(), swiglu(gate_up.values(), static_cast<size_t>(width)), close(),
                 "out");
  }
}

TEST_P(SwiGlu, BackwardMayOverwriteItsInput) {
  for (const auto& [tokens, width] : kShapes) {
    Array gate_up = random_.array(dtype(), {tokens, 2 * width}, 2.0);
    Array grad_out = random_.array(dtype(), {tokens, width});
    Array gradient(dtype(), {tokens, 2 * width});
    const Values point = gate_up.values(), upstream = grad_out.values();
    backend_->swiglu_backward({.grad_gate_up = gradient.tensor(),
                               .grad_out = grad_out.tensor(),
                               .gate_up = gate_up.tensor()});
    expect_gradient(
        gradient.values(),
        [&](const Values& v) { return dot(swiglu(v, static_cast<size_t>(width)), upstream); },
        point, close(), "grad_gate_up");
    backend_->swiglu_backward({.grad_gate_up = gate_up.tensor(),
                               .grad_out = grad_out.tensor(),
                               .gate_up = gate_up.tensor()});
    EXPECT_EQ(gate_up.values(), gradient.values());
  }
}

TEST_P(SwiGlu, IsAccurateAndFiniteOverTheWholeRangeOfGates) {
  Values gates;
  for (double gate = -200; gate <= 200; gate += 0.37) gates.push_back(gate);
  const auto width = static_cast<int64_t>(gates.size());
  Values row = gates;
  row.resize(2 * gates.size(), 1.0);
  Array gate_up(dtype(), {1, 2 * width}, row), out(dtype(), {1, width});
  backend_->swiglu({.out = out.tensor(), .gate_up = gate_up.tensor()});
  const Values expected = swiglu(gate_up.values(), gates.size()), actual = out.values();
  const double relative = dtype() == DType::kBF16 ? 0.004 : 6e-7;
  for (size_t i = 0; i < gates.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], relative * std::abs(expected[i]) + 1e-35) << gates[i];
  }
}

TEST_P(SwiGlu, ANanStaysANan) {
  const double nan = std::nan("");
  Array gate_up(dtype(), {1, 4}, {nan, 1.0, 1.0, nan}), out(dtype(), {1, 2});
  backend_->swiglu({.out = out.tensor(), .gate_up = gate_up.tensor()});
  EXPECT_TRUE(std::isnan(out.values()[0]));
  EXPECT_TRUE(std::isnan(out.values()[1]));
}

FLASHSHARD_FOR_ALL_SETUPS(SwiGlu);

}  // namespace
}  // namespace flashshard::test
