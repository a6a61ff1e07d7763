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
  for_each_vector(count, [=](size_t i, size_t n) VECTOR_BODY { store_first(load_first(from + i, n), out + i, n); });
}

void narrow_impl(const float* from, void* bf16, int64_t count) {
  auto* to = static_cast<Bf16*>(bf16);
  for_each_vector(count, [=](size_t i, size_t n) VECTOR_BODY { store_first(load_first(from + i, n), to + i, n); });
}

template <class T>
HWY_INLINE void add_typed(const float* from, T* to, int64_t count) {
  for_each_vector(count, [=](size_t i, size_t n) VECTOR_BODY {
    store_first(hn::Add(load_first(to + i, n), load_first(from + i, n)), to + i, n);
  });
}
void narrow_add_impl(const float* from, void* bf16, int64_t count) {
  add_typed(from, static_cast<Bf16*>(bf16), count);
}
void add_impl(const float* from, float* out, int64_t count) { add_typed(from, out, count); }

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace flashshard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashshard::cpu {

HWY_EXPORT(widen_impl);
HWY_EXPORT(narrow_impl);
HWY_EXPORT(narrow_add_impl);
HWY_EXPORT(add_impl);
HWY_EXPORT(target_name);

void widen(const void* bf16, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(widen_impl)(bf16, out, count);
}
void narrow(const float* from, void* bf16, int64_t count) {
  HWY_DYNAMIC_DISPATCH(narrow_impl)(from, bf16, count);
}
void narrow_add(const float* from, void* bf16, int64_t count) {
  HWY_DYNAMIC_DISPATCH(narrow_add_impl)(from, bf16, count);
}
void add(const float* from, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(add_impl)(from, out, count);
}
std::string_view instruction_set() { return HWY_DYNAMIC_DISPATCH(target_name)(); }

}  // namespace flashshard::cpu
#endif
