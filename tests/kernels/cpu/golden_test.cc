// The operations against PyTorch's results in fp32 (tests/kernels/golden/make_ops.py).
#include <bit>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "operation_test.h"

namespace flashshard::test {
namespace {

/// A safetensors file in memory: 8 bytes of length, a JSON header, the data.
class Golden {
 public:
  Golden() {
    std::ifstream file(std::string(FLASHSHARD_TEST_DATA) + "/kernels/golden/ops.safetensors",
                       std::ios::binary);
    std::stringstream contents;
    contents << file.rdbuf();
    data_ = contents.str();
    uint64_t length = 0;
    std::memcpy(&length, data_.data(), 8);
    header_ = nlohmann::json::parse(data_.substr(8, length));
    data_.erase(0, 8 + length);
  }

  std::vector<int64_t> shape(const std::string& name) const { return header_.at(name).at("shape"); }
  template <class T>
  std::vector<T> read(const std::string& name) const {
    const size_t begin = header_.at(name).at("data_offsets").at(0);
    const size_t end = header_.at(name).at("data_offsets").at(1);
    std::vector<T> result((end - begin) / sizeof(T));
    std::memcpy(result.data(), data_.data() + begin, end - begin);
    return result;
  }
  Values values(const std::string& name) const {
    const std::vector<float> floats = read<float>(name);
    return Values(floats.begin(), floats.end());
  }
  Array array(const std::string& name) const {
    return Array(DType::kFP32, shape(name), values(name));
  }
  Array like(const std::string& name) const { return Array(DType::kFP32, shape(name)); }

 private:
  std::string data_;
  nlohmann::json header_;
};

class PyTorch : public testing::TestWithParam<int64_t> {
 protected:
  PyTorch() : instruction_set_(GetParam()), backend_({.threads = 2}) {}
  void expect_equal(const Array& actual, const std::string& name) {
    expect_close(actual.values(), golden_.values(name), {1e-5, 3e-6}, name);
  }

  InstructionSet instruction_set_;
  BoundBackend backend_;
  Golden golden_;
};

TEST_P(PyTorch, AgreesOnAttention) {
  const AttentionShape shape = {
      .sequences = 2, .sequence_length = 19, .heads = 4, .kv_heads = 2, .head_dim = 8};
  Array qkv = golden_.array("attention.qkv"), out = golden_.like("attention.out"),
        lse(DType::kFP32, {38, 4});
  const AttentionForward forward = {
      .out = out.tensor(), .log_sum_exp = lse.tensor(), .qkv = qkv.tensor(), .shape = shape};
  backend_.bind(forward).attention(forward);
  expect_equal(out, "attention.out");
  Array grad_out = golden_.array("attention.grad_out"),
        grad_qkv = golden_.like("attention.grad_qkv");
  const AttentionBackward backward = {.grad_qkv = grad_qkv.tensor(),
                                      .grad_out = grad_out.tensor(),
                                      .out = out.tensor(),
                                      .log_sum_exp = lse.tensor(),
                                      .qkv = qkv.tensor(),
                                      .shape = shape};
  backend_.bind(backward).attention_backward(backward);
  expect_equal(grad_qkv, "attention.grad_qkv");
}

TEST_P(PyTorch, AgreesOnRmsNorm) {
  Array x = golden_.array("rmsnorm.x"), weight = golden_.array("rmsnorm.weight");
  Array out = golden_.like("rmsnorm.out"), inverse(DType::kFP32, {7});
  backend_->rmsnorm({.out = out.tensor(),
                     .inverse_rms = inverse.tensor(),
                     .sum = {},
                     .x = x.tensor(),
                     .delta = {},
                     .weight = weight.tensor(),
                     .epsilon = 1e-5f});
  expect_equal(out, "rmsnorm.out");
  Array grad_out = golden_.array("rmsnorm.grad_out");
  Array grad_x = golden_.like("rmsnorm.grad_x"), grad_weight = golden_.like("rmsnorm.grad_weight");
  const RmsNormBackward call = {.grad_x = grad_x.tensor(),
                                .grad_weight = grad_weight.tensor(),
                                .grad_out = grad_out.tensor(),
                                .x = x.tensor(),
                                .inverse_rms = inverse.tensor(),
                                .weight = weight.tensor()};
  backend_.bind(call).rmsnorm_backward(call);
  expect_equal(grad_x, "rmsnorm.grad_x");
  expect_equal(grad_weight, "rmsnorm.grad_weight");
}

TEST_P(PyTorch, AgreesOnRotaryEmbedding) {
  Array qkv = golden_.array("rope.qkv"), gradient = golden_.array("rope.grad_out");
  Array table = golden_.array("rope.cosine_sine");
  Rope call = {.qkv = qkv.tensor(),
               .cosine_sine = table.tensor(),
               .sequence_length = 11,
               .heads = 2,
               .kv_heads = 1,
               .head_dim = 8};
  backend_->rope(call);
  expect_equal(qkv, "rope.out");
  call.qkv = gradient.tensor();
  call.inverse = true;
  backend_->rope(call);
  expect_equal(gradient, "rope.grad_qkv");
}

TEST_P(PyTorch, AgreesOnSwiGlu) {
  Array gate_up = golden_.array("swiglu.gate_up"), out = golden_.like("swiglu.out");
  backend_->swiglu({.out = out.tensor(), .gate_up = gate_up.tensor()});
  expect_equal(out, "swiglu.out");
  Array grad_out = golden_.array("swiglu.grad_out"), gradient = golden_.like("swiglu.grad_gate_up");
  backend_->swiglu_backward({.grad_gate_up = gradient.tensor(),
                             .grad_out = grad_out.tensor(),
                             .gate_up = gate_up.tensor()});
  expect_equal(gradient, "swiglu.grad_gate_up");
}

TEST_P(PyTorch, AgreesOnCrossEntropy) {
  Array hidden = golden_.array("cross_entropy.hidden"),
        weight = golden_.array("cross_entropy.weight");
  IntArray targets(golden_.read<int32_t>("cross_entropy.targets"));
  Array grad_hidden = golden_.like("cross_entropy.grad_hidden"),
        grad_weight = golden_.like("cross_entropy.grad_weight");
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
  EXPECT_NEAR(loss, golden_.values("cross_entropy.loss")[0], 1e-5 * loss);
  EXPECT_EQ(count, 10);
  expect_equal(grad_hidden, "cross_entropy.grad_hidden");
  expect_equal(grad_weight, "cross_entropy.grad_weight");
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, PyTorch, testing::ValuesIn(instruction_sets()),
                         [](const auto& suite_info) { return hwy::TargetName(suite_info.param); });

}  // namespace
}  // namespace flashshard::test
