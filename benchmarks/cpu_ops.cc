// Speed of every operation of the CPU backend at the shapes of a small Llama, beside the machine's
// own ceilings (sgemm, memcpy).
//
// Usage: cpu_ops [--threads N] [--gemm auto|openblas] [--dtype bf16|fp32] [--hidden H] [--heads A]
// [--kv-heads K]
//                [--feed-forward F] [--vocabulary V] [--tokens T] [--sequence S] [--document D]
// With D, attention is also timed within documents of D tokens, cut off at the sequence's end.
// The last column is the share of one layer's forward and backward (the head counted once, for
// eight layers).
#include <cblas.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "kernels/error.h"
#include "kernels/numerics/bf16.h"

namespace {

using namespace flashshard;

struct Settings {
  std::map<std::string, int64_t> number = {
      {"threads", 1},   {"hidden", 256},       {"heads", 8},
      {"kv-heads", 8},  {"feed-forward", 704}, {"vocabulary", 256},
      {"tokens", 2048}, {"sequence", 256},     {"document", 0}};
  DType dtype = DType::kBF16;
  GemmLibrary gemm = GemmLibrary::kAuto;
  int64_t operator[](const char* name) const { return number.at(name); }
};

Settings parse(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    const auto number =
        option.starts_with("--") ? settings.number.find(option.substr(2)) : settings.number.end();
    if (option == "--gemm" && (value == "openblas" || value == "auto")) {
      settings.gemm = value == "openblas" ? GemmLibrary::kOpenBlas : GemmLibrary::kAuto;
    } else if (option == "--dtype" && (value == "fp32" || value == "bf16")) {
      settings.dtype = value == "fp32" ? DType::kFP32 : DType::kBF16;
    } else if (number != settings.number.end() && std::atoll(value.c_str()) > 0) {
      number->second = std::atoll(value.c_str());
    } else {
      throw Error(ExitCode::kUsage, fmt::format("{} {} is not understood", option, value), "",
                  "the options stand at the top of benchmarks/cpu_ops.cc");
    }
  }
  if (settings["hidden"] % settings["heads"] != 0 ||
      settings["hidden"] / settings["heads"] % 2 != 0 ||
      settings["heads"] % settings["kv-heads"] != 0 ||
      settings["tokens"] % settings["sequence"] != 0) {
    throw Error(ExitCode::kUsage, "the sizes do not divide", "",
                "hidden by heads (an even head), heads by kv-heads, tokens by sequence");
  }
  return settings;
}

/// Processor time with one thread, so that other programs on the machine hardly disturb; wall time
/// with more.
double now(int64_t threads) {
  if (threads == 1) return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Median seconds of a call over nine rounds of at least 20 ms.
double seconds_of(const std::function<void()>& call, int64_t threads) {
  const auto run = [&](int repeats) {
    const double start = now(threads);
    for (int i = 0; i < repeats; ++i) call();
    return now(threads) - start;
  };
  call();
  const int repeats = std::max(1, static_cast<int>(0.02 / std::max(run(1), 1e-6)));
  std::vector<double> rounds;
  for (int i = 0; i < 9; ++i) rounds.push_back(run(repeats) / repeats);
  std::sort(rounds.begin(), rounds.end());
  return rounds[rounds.size() / 2];
}

/// Tensors filled with normal values, owned by the program.
class Memory {
 public:
  explicit Memory(Backend& backend) : backend_(backend) {}
  ~Memory() {
    for (const auto& [pointer, bytes] : blocks_) backend_.release(pointer, bytes);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  Tensor zeros(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor tensor(nullptr, dtype, shape);
    tensor.data = backend_.allocate(tensor.bytes());
    blocks_.emplace_back(tensor.data, tensor.bytes());
    return tensor;
  }
  Tensor normal(DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor tensor = zeros(dtype, shape);
    for (int64_t i = 0; i < tensor.elements(); ++i) {
      const float value = distribution_(generator_);
      if (dtype == DType::kFP32) tensor.as<float>()[i] = value;
      if (dtype == DType::kBF16) tensor.as<uint16_t>()[i] = float_to_bf16(value);
    }
    return tensor;
  }
  Tensor indices(int64_t count, int64_t bound) {
    const Tensor tensor = zeros(DType::kINT32, {count});
    for (int64_t i = 0; i < count; ++i)
      tensor.as<int32_t>()[i] = static_cast<int32_t>(generator_() % bound);
    return tensor;
  }
  void bind(size_t bytes) {
    backend_.bind_workspace(zeros(DType::kUINT8, {static_cast<int64_t>(bytes)}).data, bytes);
  }

 private:
  Backend& backend_;
  std::vector<std::pair<void*, size_t>> blocks_;
  std::mt19937 generator_{7};
  std::normal_distribution<float> distribution_{0.0f, 0.5f};
};

struct Line {
  std::string name;
  double seconds, flops, bytes;
  double times_per_layer;
};

void print(const std::vector<Line>& lines) {
  double total = 0, flops = 0;
  for (const Line& line : lines) {
    total += line.seconds * line.times_per_layer;
    flops += line.flops * line.times_per_layer;
  }
  fmt::print("{:<26} {:>10} {:>10} {:>10} {:>8}\n", "operation", "us", "GFLOP/s", "GB/s", "share");
  for (const Line& line : lines) {
    fmt::print("{:<26} {:>10.1f} {:>10} {:>10} {:>7.1f}%\n", line.name, line.seconds * 1e6,
               line.flops > 0 ? fmt::format("{:.1f}", line.flops / line.seconds * 1e-9) : "",
               line.bytes > 0 ? fmt::format("{:.1f}", line.bytes / line.seconds * 1e-9) : "",
               100 * line.seconds * line.times_per_layer / total);
  }
  fmt::print("one layer with its share of the head: {:.2f} ms, {:.1f} GFLOP/s\n", total * 1e3,
             flops / total * 1e-9);
}

class Bench {
 public:
  Bench(const Settings& settings, Backend& backend)
      : s_(settings), backend_(backend), memory_(backend) {}

  std::vector<Line> run() {
    // One workspace for all: attention's backward at this size and the head are the largest.
    memory_.bind(size_t{64} << 20);
    ceilings();
    linear("qkv", hidden_, qkv_);
    linear("output projection", query_, hidden_);
    linear("gate_up", hidden_, 2 * feed_);
    linear("down", feed_, hidden_);
    attention();
    norms();
    rope();
    swiglu();
    embedding();
    head();
    return lines_;
  }

 private:
  static constexpr double kLayers = 8;

  void add(const std::string& name, double flops, double bytes, double times,
           const std::function<void()>& call) {
    lines_.push_back({name, seconds_of(call, s_["threads"]), flops, bytes, times});
  }

  void ceilings() {
    const Tensor a = memory_.normal(DType::kFP32, {tokens_, 512});
    const Tensor b = memory_.normal(DType::kFP32, {512, 512});
    const Tensor c = memory_.zeros(DType::kFP32, {tokens_, 512});
    add("ceiling: sgemm x512x512", 2.0 * static_cast<double>(tokens_) * 512 * 512, 0, 0, [=, this] {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, static_cast<blasint>(tokens_), 512,
                  512, 1.0f, a.as<float>(), 512, b.as<float>(), 512, 0.0f, c.as<float>(), 512);
    });
    const Tensor from = memory_.normal(s_.dtype, {tokens_, hidden_});
    const Tensor to = memory_.zeros(s_.dtype, {tokens_, hidden_});
    add("ceiling: memcpy (T, H)", 0, 2.0 * static_cast<double>(from.bytes()), 0,
        [=] { std::memcpy(to.data, from.data, from.bytes()); });
  }

  void product(const std::string& name, const MatMul& call, double m_n_k) {
    add(name, 2 * m_n_k, 0, 1, [=, this] { backend_.matmul(call); });
  }
  void linear(const std::string& name, int64_t in, int64_t out) {
    const Tensor x = memory_.normal(s_.dtype, {tokens_, in});
    const Tensor w = memory_.normal(s_.dtype, {out, in});
    const Tensor y = memory_.normal(s_.dtype, {tokens_, out});
    const double work =
        static_cast<double>(tokens_) * static_cast<double>(in) * static_cast<double>(out);
    product(name + " forward", {.out = y, .a = x, .b = w, .transpose_b = true}, work);
    product(name + " grad input", {.out = x, .a = y, .b = w}, work);
    product(name + " grad weight",
            {.out = w, .a = y, .b = x, .transpose_a = true, .accumulate = true}, work);
    backend_.zero(w.data, w.bytes());
  }

  void attention() {
    const AttentionShape shape = {.sequences = tokens_ / s_["sequence"],
                                  .sequence_length = s_["sequence"],
                                  .heads = static_cast<int>(heads_),
                                  .kv_heads = static_cast<int>(kv_heads_),
                                  .head_dim = static_cast<int>(dim_)};
    const Tensor qkv = memory_.normal(s_.dtype, {tokens_, qkv_});
    const Tensor grad_qkv = memory_.zeros(s_.dtype, {tokens_, qkv_});
    const Tensor out = memory_.zeros(s_.dtype, {tokens_, query_});
    const Tensor grad_out = memory_.normal(s_.dtype, {tokens_, query_});
    const Tensor lse = memory_.zeros(DType::kFP32, {tokens_, heads_});
    // The causal half: S/2 keys on average for each query.
    const double work = 2.0 * static_cast<double>(tokens_ * query_ * s_["sequence"]);
    const auto rows = [&](const std::string& scope, double share, const Tensor& starts) {
      add("attention forward" + scope, work, 0, share, [=, this] {
        backend_.attention({.out = out,
                            .log_sum_exp = lse,
                            .qkv = qkv,
                            .shape = shape,
                            .document_starts = starts});
      });
      add("attention backward" + scope, 2.5 * work, 0, share, [=, this] {
        backend_.attention_backward({.grad_qkv = grad_qkv,
                                     .grad_out = grad_out,
                                     .out = out,
                                     .log_sum_exp = lse,
                                     .qkv = qkv,
                                     .shape = shape,
                                     .document_starts = starts});
      });
    };
    rows("", 1, {});
    if (s_["document"] > 0) rows(", documents", 0, document_starts());
  }

  Tensor document_starts() {
    const Tensor starts = memory_.indices(tokens_, 1);
    for (int64_t t = 0; t < tokens_; ++t) {
      const int64_t index = t % s_["sequence"];
      starts.as<int32_t>()[t] = static_cast<int32_t>(index - index % s_["document"]);
    }
    return starts;
  }

  void norms() {
    const Tensor x = memory_.normal(s_.dtype, {tokens_, hidden_});
    const Tensor delta = memory_.normal(s_.dtype, {tokens_, hidden_});
    const Tensor sum = memory_.zeros(s_.dtype, {tokens_, hidden_});
    const Tensor out = memory_.zeros(s_.dtype, {tokens_, hidden_});
    const Tensor weight = memory_.normal(s_.dtype, {hidden_});
    const Tensor grad_weight = memory_.zeros(s_.dtype, {hidden_});
    const Tensor grad_x = memory_.zeros(s_.dtype, {tokens_, hidden_});
    const Tensor inverse = memory_.zeros(DType::kFP32, {tokens_});
    const auto bytes = static_cast<double>(x.bytes());
    add("add + rmsnorm forward", 0, 4 * bytes, 2, [=, this] {
      backend_.rmsnorm({.out = out,
                        .inverse_rms = inverse,
                        .sum = sum,
                        .x = x,
                        .delta = delta,
                        .weight = weight});
    });
    add("rmsnorm backward", 0, 4 * bytes, 2, [=, this] {
      backend_.rmsnorm_backward({.grad_x = grad_x,
                                 .grad_weight = grad_weight,
                                 .grad_out = delta,
                                 .x = x,
                                 .inverse_rms = inverse,
                                 .weight = weight});
    });
  }

  void rope() {
    const Tensor qkv = memory_.normal(s_.dtype, {tokens_, qkv_});
    const Tensor table = memory_.zeros(DType::kFP32, {s_["sequence"], dim_});
    for (int64_t i = 0; i < table.elements(); ++i) {
      const bool cosine = i % dim_ < dim_ / 2;
      table.as<float>()[i] =
          cosine ? std::cos(static_cast<float>(i)) : std::sin(static_cast<float>(i));
    }
    const double bytes = 2.0 * static_cast<double>(qkv.bytes()) *
                         static_cast<double>(heads_ + kv_heads_) /
                         static_cast<double>(heads_ + 2 * kv_heads_);
    add("rope", 0, bytes, 2, [=, this] {
      backend_.rope({.qkv = qkv,
                     .cosine_sine = table,
                     .sequence_length = s_["sequence"],
                     .heads = static_cast<int>(heads_),
                     .kv_heads = static_cast<int>(kv_heads_),
                     .head_dim = static_cast<int>(dim_)});
    });
  }

  void swiglu() {
    const Tensor gate_up = memory_.normal(s_.dtype, {tokens_, 2 * feed_});
    const Tensor grad = memory_.zeros(s_.dtype, {tokens_, 2 * feed_});
    const Tensor out = memory_.normal(s_.dtype, {tokens_, feed_});
    const auto bytes = static_cast<double>(out.bytes());
    add("swiglu backward", 0, 5 * bytes, 1, [=, this] {
      backend_.swiglu_backward({.grad_gate_up = grad, .grad_out = out, .gate_up = gate_up});
    });
    add("swiglu forward", 0, 3 * bytes, 1,
        [=, this] { backend_.swiglu({.out = out, .gate_up = gate_up}); });
  }

  void embedding() {
    const Tensor table = memory_.normal(s_.dtype, {vocabulary_, hidden_});
    const Tensor out = memory_.normal(s_.dtype, {tokens_, hidden_});
    const Tensor tokens = memory_.indices(tokens_, vocabulary_);
    const auto bytes = static_cast<double>(out.bytes());
    add("embedding forward", 0, 2 * bytes, 1 / kLayers,
        [=, this] { backend_.embedding({.out = out, .table = table, .tokens = tokens}); });
    add("embedding backward", 0, bytes, 1 / kLayers, [=, this] {
      backend_.embedding_backward({.grad_table = table, .grad_out = out, .tokens = tokens});
    });
  }

  void head() {
    const CrossEntropy call = {.loss_sum = &loss_,
                               .token_count = &count_,
                               .hidden = memory_.normal(s_.dtype, {tokens_, hidden_}),
                               .weight = memory_.normal(s_.dtype, {vocabulary_, hidden_}),
                               .targets = memory_.indices(tokens_, vocabulary_),
                               .grad_hidden = memory_.zeros(s_.dtype, {tokens_, hidden_}),
                               .grad_weight = memory_.zeros(s_.dtype, {vocabulary_, hidden_}),
                               .accumulate_weight = false};
    memory_.bind(backend_.workspace_bytes(call));
    add("head and cross-entropy", 6.0 * static_cast<double>(tokens_ * hidden_ * vocabulary_), 0,
        1 / kLayers, [=, this] { backend_.cross_entropy(call); });
  }

  const Settings& s_;
  Backend& backend_;
  Memory memory_;
  std::vector<Line> lines_;
  double loss_ = 0;
  int64_t count_ = 0;
  const int64_t tokens_ = s_["tokens"], hidden_ = s_["hidden"], heads_ = s_["heads"],
                kv_heads_ = s_["kv-heads"];
  const int64_t feed_ = s_["feed-forward"], vocabulary_ = s_["vocabulary"];
  const int64_t dim_ = hidden_ / heads_, query_ = hidden_, qkv_ = (heads_ + 2 * kv_heads_) * dim_;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    const Settings settings = parse(argc, argv);
    const auto backend =
        make_cpu_backend({.threads = static_cast<int>(settings["threads"]), .gemm = settings.gemm});
    fmt::print("# {}; {}; T={} S={} H={} heads={}/{} F={} V={}\n", backend->environment(),
               settings.dtype == DType::kBF16 ? "bf16" : "fp32", settings["tokens"],
               settings["sequence"], settings["hidden"], settings["heads"], settings["kv-heads"],
               settings["feed-forward"], settings["vocabulary"]);
    print(Bench(settings, *backend).run());
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "cpu_ops: {}\n", error.what());
    return 2;
  }
}
