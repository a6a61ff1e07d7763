#include "kernels/capi/flashshard.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <exception>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/capi/checks.h"
#include "kernels/cpu/update.h"
#include "kernels/cpu/update_loops.h"
#include "kernels/error.h"
#include "kernels/numerics/exact_sum.h"
#include "kernels/numerics/update_args.h"
#ifdef FLASHSHARD_HAVE_CUDA
#include "kernels/capi/flashshard_cuda.h"
#include "kernels/cuda/update.h"
#endif

namespace flashshard::capi {
namespace {

// The enumerations of the interface are those of the kernels.
static_assert(FS_SPLIT24 == static_cast<int>(WeightFormat::kSplit24) &&
              FS_SPLIT32 == static_cast<int>(WeightFormat::kSplit32) &&
              FS_BF16 == static_cast<int>(WeightFormat::kBF16) &&
              FS_FP32 == static_cast<int>(WeightFormat::kFP32) &&
              FS_CORRECTED24 == static_cast<int>(WeightFormat::kCorrected24) &&
              FS_CORRECTED32 == static_cast<int>(WeightFormat::kCorrected32) &&
              FS_FP16_CORRECTED24 == static_cast<int>(WeightFormat::kFP16Corrected24) &&
              FS_FP16_CORRECTED32 == static_cast<int>(WeightFormat::kFP16Corrected32) &&
              FS_FP16 == static_cast<int>(WeightFormat::kFP16));
static_assert(FS_STATE_V2 == static_cast<int>(StateFormat::kCompanded) &&
              FS_STATE_FP32 == static_cast<int>(StateFormat::kFP32) &&
              FS_STATE_FLASHOPTIM_V1 == static_cast<int>(StateFormat::kFlashOptim));
static_assert(FS_MOMENTUM == static_cast<int>(Moment::kMomentum) &&
              FS_VARIANCE == static_cast<int>(Moment::kVariance));
static_assert(FS_TYPE_BF16 == static_cast<int>(DType::kBF16) &&
              FS_TYPE_FP32 == static_cast<int>(DType::kFP32));
static_assert(FS_NEAREST == static_cast<int>(Rounding::kNearest) &&
              FS_STOCHASTIC == static_cast<int>(Rounding::kStochastic));
static_assert(FS_ADAMW == static_cast<int>(Rule::kAdamW) &&
              FS_ADAM == static_cast<int>(Rule::kAdam) &&
              FS_LION == static_cast<int>(Rule::kLion) && FS_SGD == static_cast<int>(Rule::kSGD) &&
              FS_SGDW == static_cast<int>(Rule::kSGDW));
static_assert(FS_GROUP == kGroup && FS_FRESH_V2_SCALE == kFreshScale &&
              FS_NORM_LIMBS == numerics::kExactSumLimbs);

/// Of a fixed size: keeping it must not fail when memory has run out.
thread_local std::array<char, 512> last_error = {};

void keep_error(const char* text) noexcept {
  std::snprintf(last_error.data(), last_error.size(), "%s", text);
}

/// Runs a call; whatever it throws becomes a status and a text.
template <class Call>
fs_status guarded(const Call& call) noexcept {
  fs_status status = FS_INTERNAL;
  try {
    require_ieee_arithmetic();
    call();
    return FS_OK;
  } catch (const Refusal& refusal) {
    status = refusal.status();
    keep_error(refusal.what());
  } catch (const Error& error) {
    // A GPU lost or refusing; else constants of a step that no step can use.
    status = error.code() == ExitCode::kCommunication ? FS_DEVICE : FS_OUT_OF_RANGE;
    keep_error(error.what());
  } catch (const std::exception& error) {
    keep_error(error.what());
  } catch (...) {
    keep_error("unknown error");
  }
  return status;
}

void serial(int64_t count, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }

uint64_t groups_of(int64_t count) { return static_cast<uint64_t>((count + kGroup - 1) / kGroup); }

void add_to(int64_t* counter, int64_t value) {
  if (counter != nullptr) *counter += value;
}

/// Counters, limbs and results, if given, are memory that a buffer may overlap like any other.
template <class T>
void require_numbers(Buffers& buffers, const T* numbers, size_t count, const char* name) {
  if (numbers == nullptr) return;
  const size_t bytes = count * sizeof(T);
  buffers.require({const_cast<T*>(numbers), bytes}, bytes, sizeof(T), name);
}
void require_rejected_groups(Buffers& buffers, const int64_t* rejected_groups) {
  require_numbers(buffers, rejected_groups, 1, "rejected_groups");
}

void require_weight(Buffers& buffers, WeightFormat format, int64_t count, const fs_buffer& weight,
                    const fs_buffer& correction) {
  const auto elements = static_cast<uint64_t>(count);
  const auto width = static_cast<size_t>(weight_bytes(format));
  const auto correction_width = static_cast<size_t>(correction_bytes(format));
  buffers.require(weight, elements * width, width, "weight");
  buffers.require(correction, elements * correction_width, std::max<size_t>(correction_width, 1),
                  "correction");
}

WeightFormat checked(const fs_master* call, const int64_t* rejected_groups) {
  require_pointer(call, "call");
  require_struct(call, call->struct_size, sizeof(fs_master), "fs_master");
  require_enumerator(call->format, FS_FP16, "format");
  require_count(call->count);
  const auto format = static_cast<WeightFormat>(call->format);
  Buffers buffers;
  buffers.require(call->values, static_cast<uint64_t>(call->count) * sizeof(float), sizeof(float),
                  "values");
  require_weight(buffers, format, call->count, call->weight, call->correction);
  require_rejected_groups(buffers, rejected_groups);
  buffers.require_disjoint();
  return format;
}

StateFormat checked(const fs_moments* call, const int64_t* rejected_groups) {
  require_pointer(call, "call");
  require_struct(call, call->struct_size, sizeof(fs_moments), "fs_moments");
  require_enumerator(call->format, FS_STATE_FLASHOPTIM_V1, "format");
  require_enumerator(call->moment, FS_VARIANCE, "moment");
  if (call->format == FS_STATE_FP32) {
    throw Refusal(FS_INVALID_ARGUMENT, "FS_STATE_FP32 has no codes");
  }
  require_count(call->count);
  const auto elements = static_cast<uint64_t>(call->count);
  Buffers buffers;
  buffers.require(call->values, elements * sizeof(float), sizeof(float), "values");
  buffers.require(call->codes, elements, 1, "codes");
  buffers.require(call->scales, groups_of(call->count) * sizeof(uint16_t), sizeof(uint16_t),
                  "scales");
  require_rejected_groups(buffers, rejected_groups);
  buffers.require_disjoint();
  return static_cast<StateFormat>(call->format);
}

/// A moment of a tensor: codes and scales, floats, or, where the rule has none, nothing.
void require_moment(Buffers& buffers, StateFormat format, bool exists, int64_t count,
                    const fs_buffer& moment, const fs_buffer& scales, const char* name,
                    const char* scales_name) {
  const auto elements = static_cast<uint64_t>(exists ? count : 0);
  const size_t width = has_codes(format) ? 1 : sizeof(float);
  buffers.require(moment, elements * width, width, name);
  const uint64_t groups = exists && has_codes(format) ? groups_of(count) : 0;
  buffers.require(scales, groups * sizeof(uint16_t), sizeof(uint16_t), scales_name);
}

void require_tensor(Buffers& buffers, const fs_tensor* tensor, Rule rule, double beta1) {
  require_pointer(tensor, "tensor");
  require_struct(tensor, tensor->struct_size, sizeof(fs_tensor), "fs_tensor");
  require_enumerator(tensor->weight_format, FS_FP16, "weight_format");
  require_enumerator(tensor->state_format, FS_STATE_FLASHOPTIM_V1, "state_format");
  require_enumerator(tensor->gradient_type, FS_TYPE_FP32, "gradient_type");
  require_count(tensor->count);
  constexpr int64_t kLastElement = int64_t{1} << 62;
  if (tensor->first_element < 0 || tensor->first_element > kLastElement ||
      tensor->first_element % kGroup != 0) {
    throw Refusal(FS_INVALID_ARGUMENT, "first_element is " + std::to_string(tensor->first_element) +
                                           ", it must be a multiple of 32 in 0 to 2^62");
  }
  const size_t width = size_of(static_cast<DType>(tensor->gradient_type));
  const auto format = static_cast<StateFormat>(tensor->state_format);
  buffers.require(tensor->gradient, static_cast<uint64_t>(tensor->count) * width, width,
                  "gradient");
  require_weight(buffers, static_cast<WeightFormat>(tensor->weight_format), tensor->count,
                 tensor->weight, tensor->correction);
  require_moment(buffers, format, has_momentum(rule, beta1), tensor->count, tensor->momentum,
                 tensor->momentum_scales, "momentum", "momentum_scales");
  require_moment(buffers, format, has_variance(rule), tensor->count, tensor->variance,
                 tensor->variance_scales, "variance", "variance_scales");
}

/// Null where nothing is given, whatever the pointer says.
void* data_of(const fs_buffer& buffer) { return buffer.bytes > 0 ? buffer.data : nullptr; }

UpdateTensor arguments(const fs_tensor& tensor) {
  UpdateTensor t;
  t.weight_format = static_cast<WeightFormat>(tensor.weight_format);
  t.state_format = static_cast<StateFormat>(tensor.state_format);
  t.gradient_dtype = static_cast<DType>(tensor.gradient_type);
  t.gradient = data_of(tensor.gradient);
  t.weight = data_of(tensor.weight);
  t.correction = data_of(tensor.correction);
  t.momentum = data_of(tensor.momentum);
  t.momentum_scale = static_cast<uint16_t*>(data_of(tensor.momentum_scales));
  t.variance = data_of(tensor.variance);
  t.variance_scale = static_cast<uint16_t*>(data_of(tensor.variance_scales));
  t.count = tensor.count;
  t.first_element = tensor.first_element;
  t.key = {tensor.seed, tensor.tensor_id};
  return t;
}

UpdateFactors checked(const fs_step* step) {
  require_pointer(step, "step");
  require_struct(step, step->struct_size, sizeof(fs_step), "fs_step");
  require_enumerator(step->rule, FS_SGDW, "rule");
  require_enumerator(step->rounding, FS_STOCHASTIC, "rounding");
  require_enumerator(step->nesterov, 1, "nesterov");
  const auto rule = static_cast<Rule>(step->rule);
  return make_update_factors(
      rule, {step->beta1, step->beta2, step->epsilon, step->dampening, step->nesterov != 0},
      step->learning_rate, step->gradient_factor, static_cast<Rounding>(step->rounding), step->t);
}

/// The tensor's buffers join `buffers`, which the caller compares.
UpdateTensor checked(Buffers& buffers, const fs_tensor* tensor, const fs_step& step,
                     int64_t* rejected_groups) {
  const auto rule = static_cast<Rule>(step.rule);
  require_tensor(buffers, tensor, rule, step.beta1);
  UpdateTensor t = arguments(*tensor);
  set_decay(t, rule, {step.weight_decay, step.peak_learning_rate}, step.learning_rate);
  t.rejected_groups = rejected_groups;
  return t;
}

void apply_step(const fs_tensor* tensor, const fs_step* step, int64_t* rejected_groups) {
  const UpdateFactors factors = checked(step);
  Buffers buffers;
  require_rejected_groups(buffers, rejected_groups);
  const UpdateTensor t = checked(buffers, tensor, *step, rejected_groups);
  buffers.require_disjoint();
  require_scales(tensor->state_format, tensor->momentum_scales, "momentum_scales");
  require_scales(tensor->state_format, tensor->variance_scales, "variance_scales");
  cpu::update({&t, 1}, factors, serial);
}

#ifdef FLASHSHARD_HAVE_CUDA
/// Scales lie in memory that the host cannot read: they are taken as they are.
void apply_steps_on_device(std::span<const fs_tensor> tensors, const fs_step* step,
                           int64_t* rejected_groups, void* stream) {
  const UpdateFactors factors = checked(step);
  std::vector<UpdateTensor> checked_tensors;
  Buffers buffers;
  // Once, before the first tensor: they share it.
  require_rejected_groups(buffers, rejected_groups);
  for (const fs_tensor& tensor : tensors) {
    buffers.begin_tensor(checked_tensors.size());
    checked_tensors.push_back(checked(buffers, &tensor, *step, rejected_groups));
  }
  buffers.require_disjoint();
  cuda::update(checked_tensors, factors, static_cast<cuda::Stream>(stream));
}
#endif

/// The groups of `values` that are not finite; squares are added to limbs. `buffers` are what else
/// the call was given.
int64_t add_squares(Buffers& buffers, const fs_buffer& values, int32_t type, int64_t count,
                    std::span<int64_t, FS_NORM_LIMBS> limbs) {
  require_enumerator(type, FS_TYPE_FP32, "type");
  require_count(count);
  const auto dtype = static_cast<DType>(type);
  buffers.require(values, static_cast<uint64_t>(count) * size_of(dtype), size_of(dtype), "values");
  buffers.require_disjoint();
  require_limbs(limbs.data(), limbs.size());
  const Tensor tensor(values.data, dtype, {count});
  int64_t nonfinite = 0;
  cpu::exact_norm({{&tensor, 1}, limbs, &nonfinite}, serial);
  return nonfinite;
}

}  // namespace
}  // namespace flashshard::capi

using flashshard::capi::guarded;
namespace capi = flashshard::capi;

const char* fs_version(void) { return "1.0.0"; }

const char* fs_instruction_set(void) {
  const char* name = "scalar";
  guarded([&] { name = flashshard::cpu::update_loops().name.data(); });
  return name;
}

const char* fs_last_error(void) { return capi::last_error.data(); }

fs_status fs_encode_master(const fs_master* call, int64_t* rejected_groups) {
  return guarded([&] {
    const auto format = capi::checked(call, rejected_groups);
    flashshard::cpu::encode_master(
        {format, static_cast<const float*>(call->values.data), call->weight.data,
         call->correction.data, call->count, rejected_groups},
        capi::serial);
  });
}

fs_status fs_decode_master(const fs_master* call) {
  return guarded([&] {
    const auto format = capi::checked(call, nullptr);
    flashshard::cpu::decode_master({format, static_cast<float*>(call->values.data),
                                    call->weight.data, call->correction.data, call->count},
                                   capi::serial);
  });
}

fs_status fs_encode_moments(const fs_moments* call, int64_t* rejected_groups) {
  return guarded([&] {
    const auto format = capi::checked(call, rejected_groups);
    flashshard::cpu::encode_moment(
        {format, static_cast<flashshard::Moment>(call->moment),
         static_cast<const float*>(call->values.data), call->codes.data,
         static_cast<uint16_t*>(call->scales.data), call->count, rejected_groups},
        capi::serial);
  });
}

fs_status fs_decode_moments(const fs_moments* call) {
  return guarded([&] {
    const auto format = capi::checked(call, nullptr);
    capi::require_scales(call->format, call->scales, "scales");
    flashshard::cpu::decode_moment({format, static_cast<flashshard::Moment>(call->moment),
                                    static_cast<float*>(call->values.data), call->codes.data,
                                    static_cast<const uint16_t*>(call->scales.data), call->count},
                                   capi::serial);
  });
}

fs_status fs_apply_step(const fs_tensor* tensor, const fs_step* step, int64_t* rejected_groups) {
  return guarded([&] { capi::apply_step(tensor, step, rejected_groups); });
}

fs_status fs_add_squares(fs_buffer values, int32_t type, int64_t count, int64_t* limbs,
                         int64_t* nonfinite_groups) {
  return guarded([&] {
    capi::require_pointer(limbs, "limbs");
    capi::Buffers buffers;
    capi::require_numbers(buffers, limbs, FS_NORM_LIMBS, "limbs");
    capi::require_numbers(buffers, nonfinite_groups, 1, "nonfinite_groups");
    const auto sum = std::span<int64_t, FS_NORM_LIMBS>(limbs, FS_NORM_LIMBS);
    capi::add_to(nonfinite_groups, capi::add_squares(buffers, values, type, count, sum));
  });
}

fs_status fs_norm(const int64_t* limbs, double* norm) {
  return guarded([&] {
    capi::require_pointer(limbs, "limbs");
    capi::require_pointer(norm, "norm");
    capi::Buffers buffers;
    capi::require_numbers(buffers, limbs, FS_NORM_LIMBS, "limbs");
    capi::require_numbers(buffers, norm, 1, "norm");
    buffers.require_disjoint();
    capi::require_limbs(limbs, FS_NORM_LIMBS);
    const auto sum = std::span<const int64_t, FS_NORM_LIMBS>(limbs, FS_NORM_LIMBS);
    *norm = std::sqrt(flashshard::numerics::exact_sum_value(sum));
  });
}

fs_status fs_check_finite(fs_buffer values, int32_t type, int64_t count,
                          int64_t* nonfinite_groups) {
  return guarded([&] {
    capi::require_pointer(nonfinite_groups, "nonfinite_groups");
    capi::Buffers buffers;
    capi::require_numbers(buffers, nonfinite_groups, 1, "nonfinite_groups");
    std::array<int64_t, FS_NORM_LIMBS> limbs = {};
    *nonfinite_groups = capi::add_squares(buffers, values, type, count, limbs);
  });
}

#ifdef FLASHSHARD_HAVE_CUDA
fs_status fs_cuda_apply_steps(const fs_tensor* tensors, int64_t count, const fs_step* step,
                              int64_t* rejected_groups, void* stream) {
  return guarded([&] {
    capi::require_count(count);
    if (count > 0) capi::require_pointer(tensors, "tensors");
    capi::apply_steps_on_device({tensors, static_cast<size_t>(count)}, step, rejected_groups,
                                stream);
  });
}
#endif
