// bf16 <-> fp32 over contiguous memory, and the name of the instruction set in use.
#include <string_view>

#include "kernels/cpu/vector_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/conversion.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flashshard::cpu::HWY_NAMESPACE {

void widen_impl(const void* bf16, float* out, int64_t count) {
  const auto* from = static_cast<const Bf16*>(bf16);
  for_each_vector(count, [=](size_t i, size_t n)
                             VECTOR_BODY { store_first(load_first(from + i, n), out + i, n); });
}

void narrow_impl(const float* from, void* bf16, int64_t count) {
  auto* to = static_cast<Bf16*>(bf16);
  for_each_vector(count, [=](size_t i, size_t n)
                             VECTOR_BODY { store_first(load_first(from + i, n), to + i, n); });
}

template <class From, class To>
HWY_INLINE void add(const From* from, To* to, int64_t count) {
  for_each_vector(count, [=](size_t i, size_t n) VECTOR_BODY {
    store_first(hn::Add(load_first(to + i, n), load_first(from + i, n)), to + i, n);
  });
}
void add_widened_impl(const void* from, DType from_dtype, float* out, int64_t count) {
  from_dtype == DType::kBF16 ? add(static_cast<const Bf16*>(from), out, count)
                             : add(static_cast<const float*>(from), out, count);
}
void add_rounded_impl(const float* from, void* out, DType out_dtype, int64_t count) {
  out_dtype == DType::kBF16 ? add(from, static_cast<Bf16*>(out), count)
                            : add(from, static_cast<float*>(out), count);
}

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashshard::cpu {

HWY_EXPORT(widen_impl);
HWY_EXPORT(narrow_impl);
HWY_EXPORT(add_widened_impl);
HWY_EXPORT(add_rounded_impl);
HWY_EXPORT(target_name);

void widen(const void* bf16, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(widen_impl)(bf16, out, count);
}
void narrow(const float* from, void* bf16, int64_t count) {
  HWY_DYNAMIC_DISPATCH(narrow_impl)(from, bf16, count);
}
void add_widened(const void* from, DType from_dtype, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(add_widened_impl)(from, from_dtype, out, count);
}
void add_rounded(const float* from, void* out, DType out_dtype, int64_t count) {
  HWY_DYNAMIC_DISPATCH(add_rounded_impl)(from, out, out_dtype, count);
}
std::string_view instruction_set() { return HWY_DYNAMIC_DISPATCH(target_name)(); }

}  // namespace flashshard::cpu
#endif
