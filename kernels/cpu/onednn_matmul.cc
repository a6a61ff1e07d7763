// Every distinct block shape becomes one oneDNN matmul primitive, kept with its memory objects; a
// call only swaps pointers.
#include "kernels/cpu/onednn_matmul.h"

#ifdef FLASHSHARD_HAVE_ONEDNN

#include <omp.h>

#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <unordered_map>

#include "kernels/error.h"

namespace flashshard::cpu {
namespace {

using dnnl::memory;

/// What a primitive depends on: everything but the pointers.
using Key =
    std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool, bool, DType>;

Key key_of(const BlockProduct& p) {
  return {p.m,        p.n,           p.k,           p.out_stride, p.a_stride,
          p.b_stride, p.transpose_a, p.transpose_b, p.accumulate, p.out_dtype};
}

memory::dims strides(int64_t stride, bool transpose) {
  return transpose ? memory::dims{1, stride} : memory::dims{stride, 1};
}

dnnl::matmul make_primitive(const dnnl::engine& engine, const memory::desc& a,
                            const memory::desc& b, const memory::desc& out, bool accumulate) {
  dnnl::primitive_attr attributes;
  if (accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul(dnnl::matmul::primitive_desc(engine, a, b, out, attributes));
#else
  return dnnl::matmul(
      dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, out), attributes, engine));
#endif
}

struct Entry {
  dnnl::matmul primitive;
  memory a, b, out;
  std::unordered_map<int, memory> arguments;  // handles to the three above
};

Entry make_entry(const dnnl::engine& engine, const BlockProduct& p) {
  const auto out_type =
      p.out_dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::desc a({p.m, p.k}, memory::data_type::bf16, strides(p.a_stride, p.transpose_a));
  const memory::desc b({p.k, p.n}, memory::data_type::bf16, strides(p.b_stride, p.transpose_b));
  const memory::desc out({p.m, p.n}, out_type, strides(p.out_stride, false));
  Entry entry{make_primitive(engine, a, b, out, p.accumulate),
              memory(a, engine, nullptr),
              memory(b, engine, nullptr),
              memory(out, engine, nullptr),
              {}};
  entry.arguments = {
      {DNNL_ARG_SRC, entry.a}, {DNNL_ARG_WEIGHTS, entry.b}, {DNNL_ARG_DST, entry.out}};
  return entry;
}

}  // namespace

struct OneDnnMatMul::Cache {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Key, Entry> entries;
};

OneDnnMatMul::OneDnnMatMul() : cache_(std::make_unique<Cache>()) {}
OneDnnMatMul::~OneDnnMatMul() = default;
OneDnnMatMul::OneDnnMatMul(OneDnnMatMul&&) noexcept = default;
OneDnnMatMul& OneDnnMatMul::operator=(OneDnnMatMul&&) noexcept = default;

bool OneDnnMatMul::is_supported() {
  // Only the OpenMP and sequential builds can be held to the calling thread.
  const int runtime = static_cast<int>(dnnl::version()->cpu_runtime);
  if (runtime != DNNL_RUNTIME_OMP && runtime != DNNL_RUNTIME_SEQ) return false;
  // Instruction sets are nested: each value holds the bits of those below it.
  const auto isa = static_cast<int>(dnnl::get_effective_cpu_isa());
  const auto needed = static_cast<int>(dnnl::cpu_isa::avx512_core_bf16);
  return (isa & needed) == needed;
}

std::string OneDnnMatMul::version() {
  const dnnl_version_t* v = dnnl::version();
  return "oneDNN " + std::to_string(v->major) + "." + std::to_string(v->minor) + "." +
         std::to_string(v->patch);
}

void OneDnnMatMul::run(const BlockProduct& product) {
  try {
    // A setting of the calling thread, which nobody else may have made yet. It comes before the
    // primitive is made: one made under OpenMP's default ran 5 to 20 times slower (measured, oneDNN
    // 2.6.3).
    omp_set_num_threads(1);
    auto found = cache_->entries.find(key_of(product));
    if (found == cache_->entries.end()) {
      found = cache_->entries.emplace(key_of(product), make_entry(cache_->engine, product)).first;
    }
    Entry& entry = found->second;
    entry.a.set_data_handle(const_cast<void*>(product.a));
    entry.b.set_data_handle(const_cast<void*>(product.b));
    entry.out.set_data_handle(product.out);
    entry.primitive.execute(cache_->stream, entry.arguments);
    cache_->stream.wait();
  } catch (const dnnl::error& error) {
    const bool memory_ran_out = error.status == dnnl_out_of_memory;
    throw Error(memory_ran_out ? ExitCode::kOutOfSpace : ExitCode::kInternal,
                std::string("oneDNN: ") + error.what(), "cpu backend, matrix product",
                memory_ran_out ? "use a smaller micro-batch or model" : "");
  }
}

}  // namespace flashshard::cpu

#else

#include <cassert>

namespace flashshard::cpu {

struct OneDnnMatMul::Cache {};
OneDnnMatMul::OneDnnMatMul() = default;
OneDnnMatMul::~OneDnnMatMul() = default;
OneDnnMatMul::OneDnnMatMul(OneDnnMatMul&&) noexcept = default;
OneDnnMatMul& OneDnnMatMul::operator=(OneDnnMatMul&&) noexcept = default;
bool OneDnnMatMul::is_supported() { return false; }
std::string OneDnnMatMul::version() { return {}; }
void OneDnnMatMul::run(const BlockProduct&) { assert(false); }

}  // namespace flashshard::cpu

#endif
