// What the tests of operations share: arrays in either storage type, numerical gradients in
// float64, tolerances, and one fixture parametrised over storage type, instruction set and threads.
#pragma once

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/vector_kernels.h"
#include "kernels/numerics/bf16.h"

namespace flashshard::test {

using Values = std::vector<double>;

/// Values stored as bf16 or fp32, and read back as float64.
class Array {
 public:
  Array(DType dtype, std::vector<int64_t> shape, const Values& values = {})
      : dtype_(dtype), shape_(std::move(shape)), words_(static_cast<size_t>(elements()) + 1) {
    for (size_t i = 0; i < values.size(); ++i) set(i, values[i]);
  }

  int64_t elements() const {
    return std::accumulate(shape_.begin(), shape_.end(), int64_t{1}, std::multiplies<>());
  }
  Tensor tensor() {
    Tensor t(words_.data(), dtype_, {});
    t.rank = static_cast<int>(shape_.size());
    std::copy(shape_.begin(), shape_.end(), t.shape.begin());
    return t;
  }
  void set(size_t i, double value) {
    const auto f = static_cast<float>(value);
    if (dtype_ == DType::kBF16) {
      reinterpret_cast<uint16_t*>(words_.data())[i] = float_to_bf16(f);
    } else {
      reinterpret_cast<float*>(words_.data())[i] = f;
    }
  }
  Values values() const {
    Values result;
    for (size_t i = 0; i < static_cast<size_t>(elements()); ++i) {
      result.push_back(dtype_ == DType::kBF16
                           ? bf16_to_float(reinterpret_cast<const uint16_t*>(words_.data())[i])
                           : reinterpret_cast<const float*>(words_.data())[i]);
    }
    return result;
  }

 private:
  DType dtype_;
  std::vector<int64_t> shape_;
  std::vector<float> words_;  // room for either type
};

class IntArray {
 public:
  explicit IntArray(std::vector<int32_t> values) : values_(std::move(values)) {}
  Tensor tensor() {
    return Tensor(values_.data(), DType::kINT32, {static_cast<int64_t>(values_.size())});
  }
  int32_t operator[](int64_t i) const { return values_[static_cast<size_t>(i)]; }

 private:
  std::vector<int32_t> values_;
};

/// Random numbers of a test, the same in every run.
class Random {
 public:
  explicit Random(uint32_t seed = 1) : generator_(seed) {}
  Values normal(int64_t count, double scale = 1.0) {
    Values values(static_cast<size_t>(count));
    for (double& v : values) v = scale * distribution_(generator_);
    return values;
  }
  Array array(DType dtype, std::vector<int64_t> shape, double scale = 1.0) {
    Array result(dtype, std::move(shape));
    for (int64_t i = 0; i < result.elements(); ++i) {
      result.set(static_cast<size_t>(i), scale * distribution_(generator_));
    }
    return result;
  }
  std::vector<int32_t> below(int64_t bound, int64_t count) {
    std::vector<int32_t> values(static_cast<size_t>(count));
    for (int32_t& v : values) v = static_cast<int32_t>(generator_() % static_cast<uint64_t>(bound));
    return values;
  }

 private:
  std::mt19937 generator_;
  std::normal_distribution<double> distribution_;
};

inline double dot(const Values& a, const Values& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// |actual - expected| <= relative * |expected| + of_rms * rms(expected), for every element.
struct Tolerance {
  double relative, of_rms;
};
/// bf16: half a unit in the last place is 2^-9 of the value; the second term covers rounded inputs
/// of a sum.
inline Tolerance tolerance(DType dtype) {
  return dtype == DType::kBF16 ? Tolerance{0.0045, 0.004} : Tolerance{2e-5, 1e-5};
}

inline void expect_close(const Values& actual, const Values& expected, Tolerance tolerance,
                         const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  const double rms = std::sqrt(dot(expected, expected) / static_cast<double>(expected.size()));
  for (size_t i = 0; i < actual.size(); ++i) {
    const double allowed = tolerance.relative * std::abs(expected[i]) + tolerance.of_rms * rms;
    // Not <: a NaN must fail.
    ASSERT_TRUE(std::abs(actual[i] - expected[i]) <= allowed)
        << what << "[" << i << "] is " << actual[i] << ", expected " << expected[i] << ", allowed "
        << allowed;
  }
}

using Function = std::function<double(const Values&)>;

/// Derivatives of `function` at `point` by central differences, at `coordinates` alone.
inline Values numerical_gradient(const Function& function, Values point,
                                 const std::vector<size_t>& coordinates) {
  constexpr double kStep = 1e-5;
  Values gradient;
  for (size_t i : coordinates) {
    const double value = point[i];
    point[i] = value + kStep;
    const double above = function(point);
    point[i] = value - kStep;
    const double below = function(point);
    point[i] = value;
    gradient.push_back((above - below) / (2 * kStep));
  }
  return gradient;
}

/// At most `count` of [0, size), spread over all of it.
inline std::vector<size_t> spread(size_t size, size_t count) {
  std::vector<size_t> result;
  const size_t taken = std::min(size, count);
  for (size_t i = 0; i < taken; ++i)
    result.push_back((i * size + (i * 7919) % size) / taken % size);
  return result;
}

inline Values at(const Values& values, const std::vector<size_t>& coordinates) {
  Values result;
  for (size_t i : coordinates) result.push_back(values[i]);
  return result;
}

/// `gradient` agrees with finite differences of the float64 reference.
inline void expect_gradient(const Values& gradient, const Function& function, const Values& point,
                            Tolerance tolerance, const std::string& what, size_t samples = 50) {
  const std::vector<size_t> coordinates = spread(point.size(), samples);
  expect_close(at(gradient, coordinates), numerical_gradient(function, point, coordinates),
               tolerance, what);
}

/// Instruction sets that this processor has and the kernels were built for.
inline std::vector<int64_t> instruction_sets() {
  std::vector<int64_t> result;
  hwy::SetSupportedTargetsForTest(0);
  for (const int64_t target : {HWY_AVX3, HWY_AVX2, HWY_STATIC_TARGET}) {
    if ((hwy::SupportedTargets() & target) != 0) result.push_back(target);
  }
  return result;
}

/// Runs everything on one instruction set until it goes out of scope.
class InstructionSet {
 public:
  explicit InstructionSet(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ~InstructionSet() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  InstructionSet(const InstructionSet&) = delete;
  InstructionSet& operator=(const InstructionSet&) = delete;
};

/// A backend with its workspace bound by `bind`.
class BoundBackend {
 public:
  explicit BoundBackend(const CpuOptions& options) : backend_(make_cpu_backend(options)) {}
  template <class Call>
  Backend& bind(const Call& call) {
    // Exactly what was asked for and not a byte more: sanitizers see every excess.
    const size_t bytes = backend_->workspace_bytes(call);
    memory_ = std::make_unique<std::byte[]>(bytes + 64);
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    backend_->bind_workspace(memory_.get() + (64 - address % 64) % 64, bytes);
    return *backend_;
  }
  Backend& operator*() { return *backend_; }
  Backend* operator->() { return backend_.get(); }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<std::byte[]> memory_;
};

struct Setup {
  DType dtype;
  int64_t target;
  int threads;
};

inline std::string setup_name(const Setup& setup) {
  return std::string(setup.dtype == DType::kBF16 ? "bf16" : "fp32") + "_" +
         hwy::TargetName(setup.target) + "_" + std::to_string(setup.threads) + "t";
}

inline std::vector<Setup> all_setups() {
  std::vector<Setup> result;
  for (const DType dtype : {DType::kFP32, DType::kBF16}) {
    for (const int64_t target : instruction_sets()) result.push_back({dtype, target, 1});
    result.push_back({dtype, instruction_sets().front(), 3});
  }
  return result;
}

/// An operation on one storage type, instruction set and number of threads.
class OperationTest : public testing::TestWithParam<Setup> {
 protected:
  OperationTest()
      : instruction_set_(GetParam().target), backend_({.threads = GetParam().threads}) {}

  DType dtype() const { return GetParam().dtype; }
  Tolerance close() const { return tolerance(GetParam().dtype); }

  InstructionSet instruction_set_;
  BoundBackend backend_;
  Random random_;
};

#define FLASHSHARD_FOR_ALL_SETUPS(suite)                                \
  INSTANTIATE_TEST_SUITE_P(All, suite, testing::ValuesIn(all_setups()), \
                           [](const auto& suite_info) { return setup_name(suite_info.param); })

}  // namespace flashshard::test
