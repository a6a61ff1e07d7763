// Matrix products: every transposition, dtype mix and block boundary, in each library.
#include <tuple>

#include "kernels/cpu/onednn_matmul.h"
#include "kernels/error.h"
#include "operation_test.h"

namespace flashshard::test {
namespace {

struct Dtypes {
  DType out, a, b;
};
constexpr DType kB = DType::kBF16, kF = DType::kFP32;

struct Shape {
  int64_t m, n, k;
};
// Single elements, odd sizes, several row blocks, column blocks, many row blocks, several depth
// blocks.
constexpr Shape kShapes[] = {{1, 1, 1},     {5, 7, 3},    {130, 70, 33},
                             {20, 600, 40}, {2100, 9, 5}, {130, 5, 1100}};

/// Storage of a matrix (rows, columns), transposed or not.
Array stored(Random& random, DType dtype, int64_t rows, int64_t columns, bool transposed) {
  return random.array(dtype, transposed ? std::vector{columns, rows} : std::vector{rows, columns});
}

Values product(const MatMul& call, const Shape& s, const Values& a, const Values& b,
               const Values& before) {
  Values out = call.accumulate ? before : Values(before.size(), 0.0);
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t k = 0; k < s.k; ++k) {
      const double left = a[static_cast<size_t>(call.transpose_a ? k * s.m + i : i * s.k + k)];
      for (int64_t j = 0; j < s.n; ++j) {
        out[static_cast<size_t>(i * s.n + j)] +=
            left * b[static_cast<size_t>(call.transpose_b ? j * s.k + k : k * s.n + j)];
      }
    }
  }
  return out;
}

using Case = std::tuple<Dtypes, GemmLibrary, int>;

class MatrixProduct : public testing::TestWithParam<Case> {
 protected:
  Random random_;
};

TEST_P(MatrixProduct, SumsInFp32AndRoundsOnce) {
  const auto [dtypes, library, threads] = GetParam();
  BoundBackend backend({.threads = threads, .gemm = library});
  // Half a unit in the last place of bf16 is at most 2^-8 of the value.
  const Tolerance close = dtypes.out == kB ? Tolerance{0.00391, 2e-5} : Tolerance{1e-5, 1e-5};
  for (const Shape& s : kShapes) {
    for (int flags = 0; flags < 8; ++flags) {
      MatMul call = {.out = {},
                     .a = {},
                     .b = {},
                     .transpose_a = (flags & 1) != 0,
                     .transpose_b = (flags & 2) != 0,
                     .accumulate = (flags & 4) != 0};
      Array a = stored(random_, dtypes.a, s.m, s.k, call.transpose_a);
      Array b = stored(random_, dtypes.b, s.k, s.n, call.transpose_b);
      Array out = random_.array(dtypes.out, {s.m, s.n});
      const Values expected = product(call, s, a.values(), b.values(), out.values());
      call.out = out.tensor(), call.a = a.tensor(), call.b = b.tensor();
      backend.bind(call).matmul(call);
      expect_close(out.values(), expected, close, "out, flags " + std::to_string(flags));
    }
  }
}

constexpr Dtypes kDtypes[] = {{kF, kF, kF}, {kB, kB, kB}, {kF, kB, kB}, {kB, kF, kB}, {kF, kB, kF}};

std::string case_name(const testing::TestParamInfo<Case>& info) {
  const auto& [dtypes, library, threads] = info.param;
  std::string name;
  for (const DType dtype : {dtypes.out, dtypes.a, dtypes.b}) name += dtype == kB ? "b" : "f";
  return name + (library == GemmLibrary::kAuto ? "_auto_" : "_openblas_") +
         std::to_string(threads) + "t";
}

INSTANTIATE_TEST_SUITE_P(All, MatrixProduct,
                         testing::Combine(testing::ValuesIn(kDtypes),
                                          testing::Values(GemmLibrary::kAuto,
                                                          GemmLibrary::kOpenBlas),
                                          testing::Values(1, 3)),
                         case_name);

TEST(GemmLibraryChoice, OneDnnOnDemandWorksOrIsRefusedAsUsage) {
  if (cpu::OneDnnMatMul::is_supported()) {
    const auto backend = make_cpu_backend({.threads = 1, .gemm = GemmLibrary::kOneDnn});
    EXPECT_NE(backend->environment().find("oneDNN"), std::string_view::npos);
  } else {
    try {
      make_cpu_backend({.threads = 1, .gemm = GemmLibrary::kOneDnn});
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
    }
  }
}

}  // namespace
}  // namespace flashshard::test
