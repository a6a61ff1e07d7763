// Which library should carry the CPU backend's matrix products: OpenBLAS or oneDNN?
//
// Times the three products of a linear layer (forward, gradient of the input, gradient of the
// weight) at the shapes of small Llama models. Four candidates: OpenBLAS in fp32; OpenBLAS with
// bf16 operands converted blockwise (conversion included, as a bf16 model would pay it); oneDNN in
// fp32; oneDNN with bf16 operands and result. Candidates take turns within a round and the median
// of seven rounds is reported, so that a busy machine slows all of them alike. With two threads
// each thread computes half of the rows of the result by a call of its own.
//
// Usage: gemm_backends [threads]
#include <cblas.h>
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <oneapi/dnnl/dnnl.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

using dnnl::memory;

struct Shape {
  const char* name;
  int64_t m, n, k;
  bool transpose_a, transpose_b;
};

/// A problem's operands in both storage types.
struct Operands {
  std::vector<float> a, b, out;
  std::vector<uint16_t> a16, b16, out16;
};

uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

Operands make_operands(const Shape& s) {
  Operands o;
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  o.a.resize(static_cast<size_t>(s.m * s.k));
  o.b.resize(static_cast<size_t>(s.n * s.k));
  for (float& v : o.a) v = normal(generator);
  for (float& v : o.b) v = normal(generator);
  for (float v : o.a) o.a16.push_back(to_bf16(v));
  for (float v : o.b) o.b16.push_back(to_bf16(v));
  o.out.resize(static_cast<size_t>(s.m * s.n));
  o.out16.resize(o.out.size());
  return o;
}

/// Rows [first, last) of the result; operand a is (m, k), or (k, m) when transposed.
struct Rows {
  int64_t first, last;
};

void sgemm(const Shape& s, Rows rows, const float* a, const float* b, float* out) {
  const float* a_rows = s.transpose_a ? a + rows.first : a + rows.first * s.k;
  cblas_sgemm(CblasRowMajor, s.transpose_a ? CblasTrans : CblasNoTrans,
              s.transpose_b ? CblasTrans : CblasNoTrans,
              static_cast<blasint>(rows.last - rows.first), static_cast<blasint>(s.n),
              static_cast<blasint>(s.k), 1.0f, a_rows,
              static_cast<blasint>(s.transpose_a ? s.m : s.k), b,
              static_cast<blasint>(s.transpose_b ? s.k : s.n), 0.0f, out + rows.first * s.n,
              static_cast<blasint>(s.n));
}

void widen(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    to[i] = std::bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
}

/// bf16 storage over sgemm: the smaller operand is widened whole, the larger in blocks of 256 rows.
/// Shapes with transpose_a (weight gradients) are blocked over k and accumulated in fp32.
void sgemm_from_bf16(const Shape& s, Rows rows, const Operands& o, uint16_t* out) {
  constexpr int64_t kBlock = 256;
  thread_local std::vector<float> a_panel, b_panel, out_panel;
  const int64_t m = rows.last - rows.first;
  if (s.transpose_a) {
    out_panel.resize(static_cast<size_t>(m * s.n));
    a_panel.resize(static_cast<size_t>(kBlock * m));
    b_panel.resize(static_cast<size_t>(kBlock * s.n));
    for (int64_t k0 = 0; k0 < s.k; k0 += kBlock) {
      const int64_t k = std::min(kBlock, s.k - k0);
      for (int64_t i = 0; i < k; ++i)
        widen(o.a16.data() + (k0 + i) * s.m + rows.first, a_panel.data() + i * m, m);
      widen(o.b16.data() + k0 * s.n, b_panel.data(), k * s.n);
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, static_cast<blasint>(m),
                  static_cast<blasint>(s.n), static_cast<blasint>(k), 1.0f, a_panel.data(),
                  static_cast<blasint>(m), b_panel.data(), static_cast<blasint>(s.n),
                  k0 == 0 ? 0.0f : 1.0f, out_panel.data(), static_cast<blasint>(s.n));
    }
    for (int64_t i = 0; i < m * s.n; ++i)
      out[rows.first * s.n + i] = to_bf16(out_panel[static_cast<size_t>(i)]);
    return;
  }
  a_panel.resize(static_cast<size_t>(kBlock * s.k));
  b_panel.resize(static_cast<size_t>(s.n * s.k));
  out_panel.resize(static_cast<size_t>(kBlock * s.n));
  widen(o.b16.data(), b_panel.data(), s.n * s.k);
  for (int64_t r = rows.first; r < rows.last; r += kBlock) {
    const int64_t block = std::min(kBlock, rows.last - r);
    widen(o.a16.data() + r * s.k, a_panel.data(), block * s.k);
    Shape part = s;
    part.m = block;
    sgemm(part, {0, block}, a_panel.data(), b_panel.data(), out_panel.data());
    for (int64_t i = 0; i < block * s.n; ++i)
      out[r * s.n + i] = to_bf16(out_panel[static_cast<size_t>(i)]);
  }
}

/// One thread's oneDNN matmul over its rows, its primitive made before the clock starts.
class DnnlRows {
 public:
  DnnlRows(const Shape& s, Rows rows, memory::data_type type, void* a, void* b, void* out)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    const int64_t m = rows.last - rows.first;
    const auto bytes = static_cast<int64_t>(memory::data_type_size(type));
    const memory::desc a_desc({m, s.k}, type,
                              s.transpose_a ? memory::dims{1, s.m} : memory::dims{s.k, 1});
    const memory::desc b_desc({s.k, s.n}, type,
                              s.transpose_b ? memory::dims{1, s.k} : memory::dims{s.n, 1});
    const memory::desc out_desc({m, s.n}, type, memory::dims{s.n, 1});
    matmul_ = dnnl::matmul(
        dnnl::matmul::primitive_desc(dnnl::matmul::desc(a_desc, b_desc, out_desc), engine_));
    const int64_t a_offset = (s.transpose_a ? rows.first : rows.first * s.k) * bytes;
    arguments_ = {{DNNL_ARG_SRC, memory(a_desc, engine_, static_cast<char*>(a) + a_offset)},
                  {DNNL_ARG_WEIGHTS, memory(b_desc, engine_, b)},
                  {DNNL_ARG_DST,
                   memory(out_desc, engine_, static_cast<char*>(out) + rows.first * s.n * bytes)}};
  }
  void run() {
    matmul_.execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul matmul_;
  std::unordered_map<int, memory> arguments_;
};

using Work = std::function<void(int thread)>;

/// Seconds of `repeats` calls on every thread, the slowest thread counting.
double seconds(const Work& work, int threads, int repeats) {
  const auto body = [&](int thread) {
    omp_set_num_threads(1);
    for (int i = 0; i < repeats; ++i) work(thread);
  };
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
  body(0);
  for (std::thread& t : others) t.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void measure(const Shape& s, int threads) {
  Operands o = make_operands(s);
  const auto rows_of = [&](int thread) {
    return Rows{s.m * thread / threads, s.m * (thread + 1) / threads};
  };
  std::vector<DnnlRows> fp32, bf16;
  for (int t = 0; t < threads; ++t) {
    fp32.emplace_back(s, rows_of(t), memory::data_type::f32, o.a.data(), o.b.data(), o.out.data());
    bf16.emplace_back(s, rows_of(t), memory::data_type::bf16, o.a16.data(), o.b16.data(),
                      o.out16.data());
  }
  const std::array<Work, 4> candidates = {
      [&](int t) { sgemm(s, rows_of(t), o.a.data(), o.b.data(), o.out.data()); },
      [&](int t) { sgemm_from_bf16(s, rows_of(t), o, o.out16.data()); },
      [&](int t) { fp32[static_cast<size_t>(t)].run(); },
      [&](int t) { bf16[static_cast<size_t>(t)].run(); },
  };
  const double flops =
      2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k);
  const int repeats = std::max(1, static_cast<int>(1e9 / flops));
  constexpr int kRounds = 7;
  std::array<std::array<double, kRounds>, 4> rates{};
  for (int round = -1; round < kRounds; ++round) {  // round -1 warms up
    for (size_t c = 0; c < candidates.size(); ++c) {
      const double rate = flops * repeats / seconds(candidates[c], threads, repeats) * 1e-9;
      if (round >= 0) rates[c][static_cast<size_t>(round)] = rate;
    }
  }
  std::string line = fmt::format("{:<28} {:>6} {:>6} {:>6}", s.name, s.m, s.n, s.k);
  for (auto& series : rates) {
    std::sort(series.begin(), series.end());
    line += fmt::format(" {:>14.1f}", series[kRounds / 2]);
  }
  fmt::print("{}\n", line);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  if (threads < 1 || threads > 64) {
    fmt::print(stderr, "usage: gemm_backends [threads], 1 to 64\n");
    return 2;
  }
  openblas_set_num_threads(1);
  omp_set_num_threads(1);
  const auto* version = dnnl::version();
  fmt::print("# {}; core {}\n# oneDNN {}.{}.{}; threads {}; GFLOP/s, median of 7\n",
             openblas_get_config(), openblas_get_corename(), version->major, version->minor,
             version->patch, threads);
  fmt::print("{:<28} {:>6} {:>6} {:>6} {:>14} {:>14} {:>14} {:>14}\n", "product", "M", "N", "K",
             "openblas fp32", "openblas bf16", "onednn fp32", "onednn bf16");
  struct Layer {
    const char* name;
    int64_t tokens, in, out;
  };
  for (const Layer& l : std::initializer_list<Layer>{{"H=128 gate_up", 4096, 128, 704},
                                                     {"H=192 qkv", 2048, 192, 576},
                                                     {"H=192 gate_up", 2048, 192, 1024},
                                                     {"H=192 down", 2048, 512, 192},
                                                     {"H=256 qkv", 4096, 256, 768},
                                                     {"H=256 gate_up", 2048, 256, 1408},
                                                     {"H=256 down", 2048, 704, 256},
                                                     {"H=256 head V=256", 2048, 256, 256},
                                                     {"H=512 qkv (25M)", 2048, 512, 1536},
                                                     {"H=512 gate_up (25M)", 2048, 512, 2816},
                                                     {"H=512 down (25M)", 2048, 1408, 512}}) {
    const std::string name = l.name;
    measure({(name + " fwd").c_str(), l.tokens, l.out, l.in, false, true}, threads);
    measure({(name + " dX").c_str(), l.tokens, l.in, l.out, false, false}, threads);
    measure({(name + " dW").c_str(), l.out, l.in, l.tokens, true, false}, threads);
  }
  return 0;
}
