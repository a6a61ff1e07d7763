// Causal attention with grouped key/value heads: float64 reference and finite differences,
// sequences shorter than a tile, across several tiles and not a multiple of one; within documents.
#include "operation_test.h"

namespace flashshard::test {
namespace {

struct Reference {
  Values out, log_sum_exp;
};

/// softmax(q k^T / sqrt(D)) v, plainly, in float64. A token sees from its document's start on.
Reference attention(const AttentionShape& s, const Values& qkv,
                    const std::vector<int32_t>& starts) {
  const int64_t width = int64_t{s.heads + 2 * s.kv_heads} * s.head_dim;
  const int64_t tokens = s.sequences * s.sequence_length;
  Reference result = {Values(static_cast<size_t>(tokens * s.heads * s.head_dim)),
                      Values(static_cast<size_t>(tokens * s.heads))};
  Values scores(static_cast<size_t>(s.sequence_length));
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t first =
        t / s.sequence_length * s.sequence_length + starts[static_cast<size_t>(t)];
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t kv = h / (s.heads / s.kv_heads);
      const double* q = &qkv[static_cast<size_t>(t * width + h * s.head_dim)];
      double sum = 0;
      for (int64_t j = first; j <= t; ++j) {
        const double* k = &qkv[static_cast<size_t>(j * width + (s.heads + kv) * s.head_dim)];
        const double score = std::inner_product(q, q + s.head_dim, k, 0.0) / std::sqrt(s.head_dim);
        sum += scores[static_cast<size_t>(j - first)] = std::exp(score);
      }
      result.log_sum_exp[static_cast<size_t>(t * s.heads + h)] = std::log(sum);
      double* out = &result.out[static_cast<size_t>((t * s.heads + h) * s.head_dim)];
      for (int64_t j = first; j <= t; ++j) {
        const double* v =
            &qkv[static_cast<size_t>(j * width + (s.heads + s.kv_heads + kv) * s.head_dim)];
        const double probability = scores[static_cast<size_t>(j - first)] / sum;
        for (int64_t d = 0; d < s.head_dim; ++d) out[d] += probability * v[d];
      }
    }
  }
  return result;
}

Reference attention(const AttentionShape& s, const Values& qkv) {
  return attention(s, qkv,
                   std::vector<int32_t>(static_cast<size_t>(s.sequences * s.sequence_length)));
}

constexpr AttentionShape kShapes[] = {
    {.sequences = 1, .sequence_length = 1, .heads = 1, .kv_heads = 1, .head_dim = 4},
    {.sequences = 3, .sequence_length = 7, .heads = 4, .kv_heads = 2, .head_dim = 16},
    {.sequences = 2, .sequence_length = 64, .heads = 2, .kv_heads = 1, .head_dim = 32},
    {.sequences = 1, .sequence_length = 150, .heads = 3, .kv_heads = 1, .head_dim = 10},
    {.sequences = 2, .sequence_length = 65, .heads = 2, .kv_heads = 2, .head_dim = 48},
};

struct Arrays {
  Arrays(const AttentionShape& s, DType dtype, Random& random)
      : tokens(s.sequences * s.sequence_length),
        qkv(random.array(dtype, {tokens, int64_t{s.heads + 2 * s.kv_heads} * s.head_dim})),
        out(dtype, {tokens, int64_t{s.heads} * s.head_dim}),
        log_sum_exp(DType::kFP32, {tokens, s.heads}) {}
  AttentionForward forward(const AttentionShape& s) {
    return {
        .out = out.tensor(), .log_sum_exp = log_sum_exp.tensor(), .qkv = qkv.tensor(), .shape = s};
  }
  int64_t tokens;
  Array qkv, out, log_sum_exp;
};

class Attention : public OperationTest {};

TEST_P(Attention, MixesTheValuesOfEarlierTokens) {
  for (const AttentionShape& s : kShapes) {
    Arrays arrays(s, dtype(), random_);
    const AttentionForward call = arrays.forward(s);
    backend_.bind(call).attention(call);
    const Reference expected = attention(s, arrays.qkv.values());
    expect_close(arrays.out.values(), expected.out, close(), "out");
    expect_close(arrays.log_sum_exp.values(), expected.log_sum_exp, {1e-5, 1e-5}, "log_sum_exp");
  }
}

/// What follows the queries in each row of q‖k‖v.
Array keys_and_values(const AttentionShape& s, DType dtype, const Values& qkv, int64_t tokens) {
  const int64_t queries = int64_t{s.heads} * s.head_dim;
  const int64_t width = int64_t{s.heads + 2 * s.kv_heads} * s.head_dim;
  Values rows;
  for (int64_t t = 0; t < tokens; ++t) {
    rows.insert(rows.end(), qkv.begin() + t * width + queries, qkv.begin() + (t + 1) * width);
  }
  return Array(dtype, {tokens, width - queries}, rows);
}

TEST_P(Attention, OfOneTokenAgainstACacheHasTheBitsOfTheWholeSequence) {
  constexpr AttentionShape kSequences[] = {
      {.sequences = 1, .sequence_length = 150, .heads = 3, .kv_heads = 1, .head_dim = 10},
      {.sequences = 1, .sequence_length = 130, .heads = 4, .kv_heads = 4, .head_dim = 32},
      {.sequences = 1, .sequence_length = 20, .heads = 70, .kv_heads = 2, .head_dim = 6},
  };
  for (const AttentionShape& s : kSequences) {
    Arrays arrays(s, dtype(), random_);
    const AttentionForward whole = arrays.forward(s);
    backend_.bind(whole).attention(whole);
    const Values expected = arrays.out.values();
    const int64_t width = int64_t{s.heads} * s.head_dim;
    for (const int64_t tokens : {1, 2, 16, 17, 64, 65, 128, 130, 150}) {
      if (tokens > s.sequence_length) continue;
      Array cache = keys_and_values(s, dtype(), arrays.qkv.values(), tokens);
      Array out(dtype(), {1, width});
      const AttentionDecode call = {.out = out.tensor(),
                                    .qkv = arrays.qkv.tensor().row_range(tokens - 1, 1),
                                    .keys_values = cache.tensor(),
                                    .heads = s.heads,
                                    .kv_heads = s.kv_heads,
                                    .head_dim = s.head_dim};
      backend_.bind(call).attention_decode(call);
      const auto row = expected.begin() + (tokens - 1) * width;
      EXPECT_EQ(out.values(), Values(row, row + width)) << tokens << " tokens";
    }
  }
}

TEST_P(Attention, BackwardWritesTheGradientsOfQueriesKeysAndValues) {
  for (const AttentionShape& s : kShapes) {
    Arrays arrays(s, dtype(), random_);
    Array grad_out = random_.array(dtype(), {arrays.tokens, int64_t{s.heads} * s.head_dim});
    const AttentionForward forward = arrays.forward(s);
    backend_.bind(forward).attention(forward);
    Array grad_qkv = random_.array(dtype(), {arrays.tokens, arrays.qkv.tensor().shape[1]});
    const AttentionBackward call = {.grad_qkv = grad_qkv.tensor(),
                                    .grad_out = grad_out.tensor(),
                                    .out = forward.out,
                                    .log_sum_exp = forward.log_sum_exp,
                                    .qkv = forward.qkv,
                                    .shape = s};
    backend_.bind(call).attention_backward(call);
    const Values upstream = grad_out.values();
    // delta comes from the stored output, whose rounding every gradient of a bf16 row inherits.
    const Tolerance allowed =
        dtype() == DType::kBF16 ? Tolerance{0.0045, 0.04} : Tolerance{2e-5, 2e-5};
    expect_gradient(
        grad_qkv.values(), [&](const Values& v) { return dot(attention(s, v).out, upstream); },
        arrays.qkv.values(), allowed, "grad_qkv", 30);
  }
}

/// Sequences of documents of these lengths.
struct Packed {
  AttentionShape shape;
  std::vector<int32_t> lengths;

  std::vector<int32_t> starts() const {
    std::vector<int32_t> result;
    for (const int32_t length : lengths) {
      const auto first = static_cast<int32_t>(std::ssize(result) % shape.sequence_length);
      result.insert(result.end(), static_cast<size_t>(length), first);
    }
    return result;
  }
};

std::vector<Packed> packed_documents() {
  return {
      {{.sequences = 1, .sequence_length = 5, .heads = 1, .kv_heads = 1, .head_dim = 4},
       {1, 1, 2, 1}},
      {{.sequences = 3, .sequence_length = 20, .heads = 4, .kv_heads = 2, .head_dim = 16},
       {20, 7, 13, 19, 1}},
      {{.sequences = 1, .sequence_length = 210, .heads = 3, .kv_heads = 1, .head_dim = 10},
       {3, 64, 65, 78}},
      {{.sequences = 2, .sequence_length = 128, .heads = 2, .kv_heads = 2, .head_dim = 32},
       {128, 64, 33, 31}},
  };
}

TEST_P(Attention, WithinDocumentsMixesTheValuesOfEarlierTokensOfTheDocument) {
  for (const Packed& packed : packed_documents()) {
    Arrays arrays(packed.shape, dtype(), random_);
    IntArray starts(packed.starts());
    AttentionForward call = arrays.forward(packed.shape);
    call.document_starts = starts.tensor();
    backend_.bind(call).attention(call);
    const Reference expected = attention(packed.shape, arrays.qkv.values(), packed.starts());
    expect_close(arrays.out.values(), expected.out, close(), "out");
    expect_close(arrays.log_sum_exp.values(), expected.log_sum_exp, {1e-5, 1e-5}, "log_sum_exp");
  }
}

TEST_P(Attention, WithinDocumentsBackwardWritesTheGradientsOfQueriesKeysAndValues) {
  for (const Packed& packed : packed_documents()) {
    const AttentionShape& s = packed.shape;
    Arrays arrays(s, dtype(), random_);
    IntArray starts(packed.starts());
    Array grad_out = random_.array(dtype(), {arrays.tokens, int64_t{s.heads} * s.head_dim});
    AttentionForward forward = arrays.forward(s);
    forward.document_starts = starts.tensor();
    backend_.bind(forward).attention(forward);
    Array grad_qkv = random_.array(dtype(), {arrays.tokens, arrays.qkv.tensor().shape[1]});
    const AttentionBackward call = {.grad_qkv = grad_qkv.tensor(),
                                    .grad_out = grad_out.tensor(),
                                    .out = forward.out,
                                    .log_sum_exp = forward.log_sum_exp,
                                    .qkv = forward.qkv,
                                    .shape = s,
                                    .document_starts = starts.tensor()};
    backend_.bind(call).attention_backward(call);
    const Values upstream = grad_out.values();
    const Tolerance allowed =
        dtype() == DType::kBF16 ? Tolerance{0.0045, 0.04} : Tolerance{2e-5, 2e-5};
    expect_gradient(
        grad_qkv.values(),
        [&](const Values& v) { return dot(attention(s, v, packed.starts()).out, upstream); },
        arrays.qkv.values(), allowed, "grad_qkv", 10);
  }
}

Tensor row_range_of(Array& array, int64_t first, int64_t count) {
  return array.tensor().row_range(first, count);
}

TEST_P(Attention, GivesADocumentTheBitsThatItHasAsASequenceOfItsOwn) {
  for (const Packed& packed : packed_documents()) {
    const AttentionShape& s = packed.shape;
    Arrays arrays(s, dtype(), random_), alone(s, dtype(), random_);
    IntArray starts(packed.starts());
    Array grad_out = random_.array(dtype(), {arrays.tokens, int64_t{s.heads} * s.head_dim});
    Array grad_qkv(dtype(), {arrays.tokens, arrays.qkv.tensor().shape[1]}), grad_alone = grad_qkv;
    AttentionForward forward = arrays.forward(s);
    forward.document_starts = starts.tensor();
    backend_.bind(forward).attention(forward);
    AttentionBackward backward = {.grad_qkv = grad_qkv.tensor(),
                                  .grad_out = grad_out.tensor(),
                                  .out = forward.out,
                                  .log_sum_exp = forward.log_sum_exp,
                                  .qkv = forward.qkv,
                                  .shape = s,
                                  .document_starts = starts.tensor()};
    backend_.bind(backward).attention_backward(backward);
    int64_t first = 0;
    for (const int32_t length : packed.lengths) {
      AttentionShape document = s;
      document.sequences = 1;
      document.sequence_length = length;
      const AttentionForward call = {.out = row_range_of(alone.out, first, length),
                                     .log_sum_exp = row_range_of(alone.log_sum_exp, first, length),
                                     .qkv = row_range_of(arrays.qkv, first, length),
                                     .shape = document};
      backend_.bind(call).attention(call);
      const AttentionBackward back = {.grad_qkv = row_range_of(grad_alone, first, length),
                                      .grad_out = row_range_of(grad_out, first, length),
                                      .out = call.out,
                                      .log_sum_exp = call.log_sum_exp,
                                      .qkv = call.qkv,
                                      .shape = document};
      backend_.bind(back).attention_backward(back);
      first += length;
    }
    EXPECT_EQ(arrays.out.values(), alone.out.values());
    EXPECT_EQ(arrays.log_sum_exp.values(), alone.log_sum_exp.values());
    EXPECT_EQ(grad_qkv.values(), grad_alone.values());
  }
}

TEST_P(Attention, LargeScoresDoNotOverflow) {
  constexpr AttentionShape kShape = {
      .sequences = 1, .sequence_length = 70, .heads = 1, .kv_heads = 1, .head_dim = 16};
  Arrays arrays(kShape, dtype(), random_);
  arrays.qkv = random_.array(dtype(), {70, 48}, 12.0);
  const AttentionForward call = arrays.forward(kShape);
  backend_.bind(call).attention(call);
  expect_close(arrays.out.values(), attention(kShape, arrays.qkv.values()).out,
               {close().relative * 10, close().of_rms * 10}, "out");
}

TEST_P(Attention, ANanReachesOnlyLaterTokensOfItsSequence) {
  constexpr AttentionShape kShape = {
      .sequences = 2, .sequence_length = 5, .heads = 1, .kv_heads = 1, .head_dim = 16};
  Arrays arrays(kShape, dtype(), random_);
  arrays.qkv.set(2 * 48 + 20, std::nan(""));  // a key of token 2
  const AttentionForward call = arrays.forward(kShape);
  backend_.bind(call).attention(call);
  const Values out = arrays.out.values();
  for (size_t t = 0; t < 10; ++t) EXPECT_EQ(std::isnan(out[t * 16]), t >= 2 && t < 5) << t;
}

TEST_P(Attention, ANanReachesOnlyLaterTokensOfItsDocument) {
  constexpr AttentionShape kShape = {
      .sequences = 1, .sequence_length = 10, .heads = 1, .kv_heads = 1, .head_dim = 16};
  Arrays arrays(kShape, dtype(), random_);
  arrays.qkv.set(4 * 48 + 20, std::nan(""));  // a key of token 4
  IntArray starts({0, 0, 0, 3, 3, 3, 6, 6, 6, 6});
  AttentionForward call = arrays.forward(kShape);
  call.document_starts = starts.tensor();
  backend_.bind(call).attention(call);
  const Values out = arrays.out.values();
  for (size_t t = 0; t < 10; ++t) EXPECT_EQ(std::isnan(out[t * 16]), t == 4 || t == 5) << t;
}

FLASHSHARD_FOR_ALL_SETUPS(Attention);

}  // namespace
}  // namespace flashshard::test
