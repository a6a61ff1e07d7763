// Memory, workspace, environment and options of the CPU backend, and that threads never change a
// bit.
#include <gmock/gmock.h>

#include <cstring>

#include "kernels/error.h"
#include "operation_test.h"

// An allocation that cannot succeed is part of what is tested here.
extern "C" const char* __asan_default_options() {  // NOLINT(bugprone-reserved-identifier)
  return "allocator_may_return_null=1";
}
extern "C" const char* __tsan_default_options() {  // NOLINT(bugprone-reserved-identifier)
  return "allocator_may_return_null=1";
}

namespace flashshard::test {
namespace {

TEST(CpuBackend, AllocatesZeroedMemoryAlignedTo256Bytes) {
  const auto backend = make_cpu_backend({});
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{100}, size_t{70000}}) {
    auto* memory = static_cast<unsigned char*>(backend->allocate(bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 256, 0u);
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(memory[i], 0);
    backend->release(memory, bytes);
  }
}

TEST(CpuBackend, SaysHowMuchMemoryItCouldNotGet) {
  const auto backend = make_cpu_backend({});
  try {
    backend->allocate(size_t{1} << 60);
    FAIL() << "2^60 bytes were allocated";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kOutOfSpace);
    EXPECT_THAT(error.what(), testing::HasSubstr("1152921504606846976"));
  }
}

TEST(CpuBackend, CopiesAndZeroes) {
  const auto backend = make_cpu_backend({});
  std::vector<int> from = {1, 2, 3}, to(3);
  backend->copy(to.data(), from.data(), 12);
  EXPECT_EQ(to, from);
  backend->zero(to.data(), 8);
  EXPECT_EQ(to, (std::vector{0, 0, 3}));
  backend->copy(nullptr, nullptr, 0);
  backend->zero(nullptr, 0);
  backend->synchronize();
}

TEST(CpuBackend, RefusesToRunWithoutThreads) {
  for (const int threads : {0, -2}) {
    try {
      make_cpu_backend({.threads = threads});
      FAIL() << threads << " threads were accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
    }
  }
}

TEST(CpuBackend, NamesWhatItsBitsDependOn) {
  const auto backend = make_cpu_backend({.threads = 2, .gemm = GemmLibrary::kOpenBlas});
  EXPECT_EQ(backend->name(), "cpu");
  const std::string environment(backend->environment());
  EXPECT_THAT(environment, testing::HasSubstr(cpu::instruction_set()));
  EXPECT_THAT(environment, testing::HasSubstr("OpenBLAS 0."));
  EXPECT_THAT(environment, testing::HasSubstr("2 threads"));
  EXPECT_THAT(environment, testing::Not(testing::HasSubstr("oneDNN")));
}

TEST(CpuBackend, RunsOnEveryInstructionSetItIsToldTo) {
  EXPECT_FALSE(instruction_sets().empty());
  for (const int64_t target : instruction_sets()) {
    const InstructionSet selected(target);
    EXPECT_EQ(cpu::instruction_set(), hwy::TargetName(target));
  }
}

TEST(CpuBackend, AWorkspaceTooSmallIsAnInternalErrorAndNotACorruption) {
  const auto backend = make_cpu_backend({});
  Random random;
  Array hidden = random.array(DType::kBF16, {4, 8}), weight = random.array(DType::kBF16, {6, 8});
  IntArray targets({0, 1, 2, 3});
  double loss = 0;
  CrossEntropy call;
  call.loss_sum = &loss;
  call.hidden = hidden.tensor(), call.weight = weight.tensor(), call.targets = targets.tensor();
  alignas(64) std::byte memory[64];
  backend->bind_workspace(memory, sizeof(memory));
  try {
    backend->cross_entropy(call);
    FAIL() << "ran in 64 bytes";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kInternal);
  }
}

/// Results of one operation as bytes; every operation that shares work is here.
class Everything {
 public:
  Everything(int threads, DType dtype, GemmLibrary library)
      : dtype_(dtype), backend_({.threads = threads, .gemm = library}) {}

  std::vector<Values> run() {
    products();
    attention();
    norm();
    head();
    embedding();
    bias();
    return std::move(results_);
  }

 private:
  void products() {
    for (const bool transpose : {false, true}) {
      Array a = random_.array(dtype_, {300, 200}),
            b = random_.array(dtype_, {transpose ? 300 : 200, 90});
      Array out(dtype_, {transpose ? 200 : 300, 90});
      const MatMul call = {
          .out = out.tensor(), .a = a.tensor(), .b = b.tensor(), .transpose_a = transpose};
      backend_.bind(call).matmul(call);
      results_.push_back(out.values());
    }
  }
  void attention() {
    constexpr AttentionShape kShape = {
        .sequences = 3, .sequence_length = 70, .heads = 4, .kv_heads = 2, .head_dim = 16};
    Array qkv = random_.array(dtype_, {210, 128}), grad_qkv(dtype_, {210, 128});
    Array out(dtype_, {210, 64}), grad_out = random_.array(dtype_, {210, 64}),
                                  lse(DType::kFP32, {210, 4});
    const AttentionForward forward = {
        .out = out.tensor(), .log_sum_exp = lse.tensor(), .qkv = qkv.tensor(), .shape = kShape};
    backend_.bind(forward).attention(forward);
    const AttentionBackward backward = {.grad_qkv = grad_qkv.tensor(),
                                        .grad_out = grad_out.tensor(),
                                        .out = out.tensor(),
                                        .log_sum_exp = lse.tensor(),
                                        .qkv = qkv.tensor(),
                                        .shape = kShape};
    backend_.bind(backward).attention_backward(backward);
    results_.insert(results_.end(), {out.values(), lse.values(), grad_qkv.values()});
  }
  void norm() {
    Array x = random_.array(dtype_, {1000, 24}), weight = random_.array(dtype_, {24});
    Array inverse = Array(DType::kFP32, {1000}, Values(1000, 0.9));
    Array grad_x(dtype_, {1000, 24}), grad_weight(DType::kFP32, {24});
    Array grad_out = random_.array(dtype_, {1000, 24});
    const RmsNormBackward call = {.grad_x = grad_x.tensor(),
                                  .grad_weight = grad_weight.tensor(),
                                  .grad_out = grad_out.tensor(),
                                  .x = x.tensor(),
                                  .inverse_rms = inverse.tensor(),
                                  .weight = weight.tensor()};
    backend_.bind(call).rmsnorm_backward(call);
    results_.insert(results_.end(), {grad_x.values(), grad_weight.values()});
  }
  void head() {
    Array hidden = random_.array(dtype_, {400, 16}), weight = random_.array(dtype_, {300, 16});
    Array grad_hidden(dtype_, {400, 16}), grad_weight(dtype_, {300, 16});
    IntArray targets(random_.below(300, 400));
    double loss = 0;
    int64_t count = 0;
    const CrossEntropy call = {.loss_sum = &loss,
                               .token_count = &count,
                               .hidden = hidden.tensor(),
                               .weight = weight.tensor(),
                               .targets = targets.tensor(),
                               .grad_hidden = grad_hidden.tensor(),
                               .grad_weight = grad_weight.tensor(),
                               .accumulate_weight = false};
    backend_.bind(call).cross_entropy(call);
    results_.insert(results_.end(), {{loss}, grad_hidden.values(), grad_weight.values()});
  }
  void embedding() {
    Array grad_out = random_.array(dtype_, {500, 16}), grad_table(dtype_, {300, 16});
    IntArray tokens(random_.below(300, 500));
    const EmbeddingBackward call = {.grad_table = grad_table.tensor(),
                                    .grad_out = grad_out.tensor(),
                                    .tokens = tokens.tensor()};
    backend_.bind(call).embedding_backward(call);
    results_.push_back(grad_table.values());
  }

  void bias() {
    Array grad_out = random_.array(dtype_, {1000, 24}), grad_bias(DType::kFP32, {24});
    const BiasBackward call = {.grad_bias = grad_bias.tensor(), .grad_out = grad_out.tensor()};
    backend_.bind(call).bias_backward(call);
    results_.push_back(grad_bias.values());
  }

  DType dtype_;
  BoundBackend backend_;
  Random random_;
  std::vector<Values> results_;
};

TEST(CpuBackend, GivesTheSameBitsWithAnyNumberOfThreads) {
  for (const DType dtype : {DType::kBF16, DType::kFP32}) {
    for (const GemmLibrary library : {GemmLibrary::kAuto, GemmLibrary::kOpenBlas}) {
      const std::vector<Values> one = Everything(1, dtype, library).run();
      for (const int threads : {2, 3, 7})
        EXPECT_EQ(Everything(threads, dtype, library).run(), one) << threads;
    }
  }
}

TEST(CpuBackend, ForwardsTheUpdateOperations) {
  const auto backend = make_cpu_backend({.threads = 2});
  Array first(DType::kBF16, {3}, {1, 2, 3}), second(DType::kBF16, {3}, {10, 20, 30}),
      sum(DType::kFP32, {3});
  const void* inputs[] = {first.tensor().data, second.tensor().data};
  backend->fold({.out = sum.tensor(), .inputs = inputs, .input_dtype = DType::kBF16});
  EXPECT_EQ(sum.values(), (Values{11, 22, 33}));

  std::array<int64_t, 10> limbs = {};
  int64_t nonfinite = 0;
  const Tensor tensors[] = {sum.tensor()};
  backend->exact_norm({.tensors = tensors, .limbs = limbs, .nonfinite_groups = &nonfinite});
  EXPECT_THAT(limbs, testing::Contains(testing::Ne(0)));
  EXPECT_EQ(nonfinite, 0);

  const float values[] = {0.1f, -2.5f, 3e-5f};
  float decoded[3];
  uint16_t weight[3];
  int16_t correction[3];
  backend->encode_master({.format = WeightFormat::kSplit32,
                          .values = values,
                          .weight = weight,
                          .correction = correction,
                          .count = 3});
  backend->decode_master({.format = WeightFormat::kSplit32,
                          .values = decoded,
                          .weight = weight,
                          .correction = correction,
                          .count = 3});
  EXPECT_THAT(decoded, testing::ElementsAreArray(values));

  float parameter = 1.0f, momentum = 0.0f, variance = 0.0f;
  const float gradient = 0.5f;
  UpdateTensor tensor;
  tensor.weight_format = WeightFormat::kFP32;
  tensor.state_format = StateFormat::kFP32;
  tensor.gradient_dtype = DType::kFP32;
  tensor.gradient = &gradient;
  tensor.weight = &parameter;
  tensor.momentum = &momentum;
  tensor.variance = &variance;
  tensor.count = 1;
  backend->update({&tensor, 1},
                  make_update_factors(Rule::kAdamW, {}, 0.1, 1.0, Rounding::kNearest, 1));
  EXPECT_NEAR(parameter, 0.9f, 1e-5f);  // Adam's first step is the learning rate
}

}  // namespace
}  // namespace flashshard::test
