// Rotary embedding in place on q‖k‖v, half-split pairs, with and without biases.
#include "operation_test.h"

namespace flashshard::test {
namespace {

struct Shape {
  int64_t sequences, sequence_length;
  int heads, kv_heads, head_dim;
  int64_t first_position;
};
constexpr Shape kShapes[] = {
    {1, 1, 1, 1, 2, 0}, {2, 5, 4, 2, 16, 0}, {3, 7, 3, 1, 10, 4}, {1, 9, 2, 2, 64, 3}};

double angle(int64_t position, int64_t pair, int64_t head_dim) {
  return static_cast<double>(position) *
         std::pow(10000.0, -2.0 * static_cast<double>(pair) / static_cast<double>(head_dim));
}

Values rotated(Values qkv, const Shape& s, double sign) {
  const int64_t half = s.head_dim / 2;
  const int64_t width = int64_t{s.heads + 2 * s.kv_heads} * s.head_dim;
  for (int64_t t = 0; t < s.sequences * s.sequence_length; ++t) {
    for (int64_t h = 0; h < s.heads + s.kv_heads; ++h) {
      for (int64_t i = 0; i < half; ++i) {
        const double a = sign * angle(s.first_position + t % s.sequence_length, i, s.head_dim);
        double& first = qkv[static_cast<size_t>(t * width + h * s.head_dim + i)];
        double& second = qkv[static_cast<size_t>(t * width + h * s.head_dim + half + i)];
        const double x = first, y = second;
        first = x * std::cos(a) - y * std::sin(a);
        second = y * std::cos(a) + x * std::sin(a);
      }
    }
  }
  return qkv;
}

Array table(const Shape& s) {
  const int64_t positions = s.first_position + s.sequence_length;
  Array result(DType::kFP32, {positions, s.head_dim});
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < s.head_dim / 2; ++i) {
      const auto row = static_cast<size_t>(p * s.head_dim + i);
      result.set(row, std::cos(angle(p, i, s.head_dim)));
      result.set(row + static_cast<size_t>(s.head_dim / 2), std::sin(angle(p, i, s.head_dim)));
    }
  }
  return result;
}

Rope call_of(const Shape& s, Array& qkv, Array& cosine_sine, bool inverse) {
  return {.qkv = qkv.tensor(),
          .cosine_sine = cosine_sine.tensor(),
          .sequence_length = s.sequence_length,
          .first_position = s.first_position,
          .heads = s.heads,
          .kv_heads = s.kv_heads,
          .head_dim = s.head_dim,
          .inverse = inverse};
}

class RotaryEmbedding : public OperationTest {};

TEST_P(RotaryEmbedding, RotatesQueriesAndKeysByTheirPositionAndLeavesValues) {
  for (const Shape& s : kShapes) {
    Array cosine_sine = table(s);
    Array qkv = random_.array(
        dtype(), {s.sequences * s.sequence_length, int64_t{s.heads + 2 * s.kv_heads} * s.head_dim});
    const Values expected = rotated(qkv.values(), s, 1);
    backend_->rope(call_of(s, qkv, cosine_sine, false));
    expect_close(qkv.values(), expected, close(), "qkv");
  }
}

TEST_P(RotaryEmbedding, AddsTheBiasBeforeItRotatesAndToValuesAsWell) {
  for (const Shape& s : kShapes) {
    const int64_t width = int64_t{s.heads + 2 * s.kv_heads} * s.head_dim;
    Array cosine_sine = table(s);
    Array qkv = random_.array(dtype(), {s.sequences * s.sequence_length, width});
    Array bias = random_.array(dtype(), {width});
    Values sum = qkv.values();
    const Values added = bias.values();
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += added[i % added.size()];
    Rope call = call_of(s, qkv, cosine_sine, false);
    call.bias = bias.tensor();
    backend_->rope(call);
    expect_close(qkv.values(), rotated(sum, s, 1), close(), "qkv");
  }
}

// The gradient of q‖k‖v before the rotation is that of every row's bias, too.
TEST_P(RotaryEmbedding, TheGradientOfTheBiasIsTheSumOverTokensOfTheInverse) {
  for (const DType gradient_dtype : {dtype(), DType::kFP32}) {
    for (const Shape& s : kShapes) {
      const int64_t width = int64_t{s.heads + 2 * s.kv_heads} * s.head_dim;
      Array cosine_sine = table(s);
      Array gradient = random_.array(dtype(), {s.sequences * s.sequence_length, width});
      Array grad_bias = random_.array(gradient_dtype, {width});
      const Values upstream = gradient.values(), before = grad_bias.values();
      const Values qkv = random_.normal(gradient.elements()), point = random_.normal(width);
      backend_->rope(call_of(s, gradient, cosine_sine, true));
      const BiasBackward call = {.grad_bias = grad_bias.tensor(), .grad_out = gradient.tensor()};
      backend_.bind(call).bias_backward(call);
      const auto loss = [&](const Values& bias) {
        Values sum = qkv;
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += bias[i % bias.size()];
        return dot(rotated(sum, s, 1), upstream) + dot(bias, before);
      };
      // Each of the T terms was rounded to the storage type by the inverse rotation.
      const Tolerance each = close();
      expect_gradient(grad_bias.values(), loss, point, {each.relative, 3 * each.of_rms},
                      "grad_bias");
    }
  }
}

TEST_P(RotaryEmbedding, TheInverseIsTheBackward) {
  for (const Shape& s : kShapes) {
    Array cosine_sine = table(s);
    Array gradient = random_.array(
        dtype(), {s.sequences * s.sequence_length, int64_t{s.heads + 2 * s.kv_heads} * s.head_dim});
    const Values upstream = gradient.values();
    const Values point = random_.normal(gradient.elements());
    backend_->rope(call_of(s, gradient, cosine_sine, true));
    expect_gradient(
        gradient.values(), [&](const Values& v) { return dot(rotated(v, s, 1), upstream); }, point,
        close(), "gradient");
  }
}

TEST_P(RotaryEmbedding, CountsPositionsFromTheStartOfADocument) {
  const Shape sequences = {2, 9, 3, 1, 10, 0};
  const std::vector<int32_t> lengths = {4, 1, 4, 9};
  const int64_t width = int64_t{sequences.heads + 2 * sequences.kv_heads} * sequences.head_dim;
  for (const bool inverse : {false, true}) {
    Array cosine_sine = table(sequences);
    Array packed = random_.array(dtype(), {18, width}), alone = packed;
    IntArray starts({0, 0, 0, 0, 4, 5, 5, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0});
    Rope call = call_of(sequences, packed, cosine_sine, inverse);
    call.document_starts = starts.tensor();
    backend_->rope(call);
    int64_t first = 0;
    for (const int32_t length : lengths) {
      Rope document = call_of(sequences, alone, cosine_sine, inverse);
      document.qkv = document.qkv.row_range(first, length);
      backend_->rope(document);
      first += length;
    }
    EXPECT_EQ(packed.values(), alone.values());
  }
}

FLASHSHARD_FOR_ALL_SETUPS(RotaryEmbedding);

}  // namespace
}  // namespace flashshard::test
