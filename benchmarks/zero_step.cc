// A ZeRO step with made-up gradients: the sharding layer alone, at sizes whose forward and backward
// would take this machine days. Shows bytes per parameter by class, summed over ranks, and the
// update beside the memory's speed.
//
//   build/zero_step                                # 1e9 parameters, stage 3, 2 ranks
//   build/zero_step --release
//   mpirun -n 2 build/zero_step --stage 2 --json steps.jsonl
//
// Ranks are threads of this process, or mpirun's.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "comm/connect.h"
#include "comm/threads.h"
#include "kernels/numerics/bf16.h"
#include "optim/ledger.h"
#include "optim/legality.h"
#include "optim/sharded_optimizer.h"

namespace {

using namespace flashshard;
using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::duration<double, std::milli>;

/// Bytes that AdamW in format V2 moves for an element: gradient, weight, correction, two codes and
/// two scales of 32 are read, all but the gradient written.
constexpr double kUpdateBytes = 2 + 2 * (2 + 1 + 1 + 1 + 4.0 / 32);

struct Settings {
  int ranks = 2;
  int64_t hidden = 2048, feed_forward = 0, layers = 19, vocabulary = 32000;
  Sharding sharding = {.stage = 3};
  int64_t bucket_bytes = 64 << 20;
  int steps = 3;
  std::string json;
};

ParameterSpec parameter(const std::string& name, int64_t rows, int64_t cols, int layer) {
  ParameterSpec p;
  p.name = name;
  p.rows = rows;
  p.cols = cols;
  p.role = cols == 1 ? ParameterRole::kVector : ParameterRole::kMatrix;
  p.decay = cols > 1;
  p.layer = layer;
  return p;
}

/// A Llama's tensors, embedding and head apart.
std::vector<ParameterSpec> parameters(const Settings& s) {
  std::vector<ParameterSpec> all = {parameter("embedding", s.vocabulary, s.hidden, 0)};
  for (int layer = 1; layer <= s.layers; ++layer) {
    const std::string block = fmt::format("layers.{}.", layer - 1);
    all.push_back(parameter(block + "attention_norm", s.hidden, 1, layer));
    all.push_back(parameter(block + "qkv", 3 * s.hidden, s.hidden, layer));
    all.push_back(parameter(block + "output", s.hidden, s.hidden, layer));
    all.push_back(parameter(block + "feed_forward_norm", s.hidden, 1, layer));
    all.push_back(parameter(block + "gate_up", 2 * s.feed_forward, s.hidden, layer));
    all.push_back(parameter(block + "down", s.hidden, s.feed_forward, layer));
  }
  const int last = static_cast<int>(s.layers) + 1;
  all.push_back(parameter("norm", s.hidden, 1, last));
  all.push_back(parameter("head", s.vocabulary, s.hidden, last));
  return all;
}

struct StepTimes {
  double step_ms = 0;
  StepOutcome outcome;
};

/// One rank's training.
class Training {
 public:
  Training(Communicator& communicator, const Settings& settings)
      : settings_(settings),
        communicator_(communicator),
        backend_(
            make_cpu_backend({std::max(1, static_cast<int>(std::thread::hardware_concurrency()) /
                                              communicator.world_size())})),
        ledger_(*backend_),
        rule_(make_elementwise_rule(*backend_, {})),
        layout_(parameters(settings), units(), communicator.world_size()),
        state_(ledger_, layout_, *rule_, communicator.rank(), DType::kBF16, settings.sharding),
        plan_(layout_, settings.bucket_bytes, 2),
        gradients_(ledger_, plan_, communicator.rank(), {settings.sharding, DType::kBF16}),
        groups_(communicator, gradients_.placement()),
        optimizer_(groups_, ledger_, state_, gradients_, *rule_,
                   {.clip_norm = settings.sharding.clips ? 1.0 : 0.0}) {
    std::mt19937 random(static_cast<unsigned>(communicator.rank()) + 1);
    std::normal_distribution<float> normal(0, 1e-3f);
    for (uint16_t& value : pattern_) value = float_to_bf16(normal(random));
    // No draws: of 1e9 weights they would take minutes.
    optimizer_.initialize([](int, RowRange, std::span<float> out) {
      for (size_t i = 0; i < out.size(); ++i) {
        out[i] = 0.02f * static_cast<float>(static_cast<int>(i % 127) - 63) / 64;
      }
    });
  }

  StepTimes step() {
    const auto start = Clock::now();
    const int last = static_cast<int>(settings_.layers) + 1;
    optimizer_.begin_round({.contributors = communicator_.world_size(),
                            .learning_rate = kLearningRate,
                            .tokens = kTokens});
    optimizer_.begin_pass(true);
    for (int layer = 0; layer <= last; ++layer) {
      optimizer_.before_layer(layer);
    }
    for (int layer = last; layer >= 0; --layer) {
      if (layer != last && layer != 0) optimizer_.before_layer(layer);
      write_gradients(layer);
      optimizer_.layer_ready(layer);
    }
    StepTimes times;
    times.outcome = optimizer_.step(kLearningRate, kTokens);
    times.step_ms = Milliseconds(Clock::now() - start).count();
    return times;
  }

  const MemoryTable& tagged() const { return ledger_.tagged(); }
  MemoryTable predicted() const {
    LedgerInputs inputs;
    inputs.format = {settings_.sharding, DType::kBF16};
    inputs.bucket_bytes = settings_.bucket_bytes;
    return predict_memory(layout_, *rule_, communicator_.rank(), inputs);
  }
  int64_t all_elements() const {
    int64_t count = 0;
    for (const ParameterSpec& p : layout_.parameters()) count += p.elements();
    return count;
  }
  /// Of the rows whose states this rank updates.
  int64_t updated_elements() const {
    if (!settings_.sharding.divides_states()) return all_elements();
    int64_t count = 0;
    for (const Bucket& bucket : plan_.buckets())
      count += plan_.elements_of(bucket, communicator_.rank());
    return count;
  }

 private:
  static constexpr double kLearningRate = 1e-4;
  static constexpr int64_t kTokens = 1;

  std::vector<int64_t> units() const {
    std::vector<int64_t> all;
    for (const ParameterSpec& p : parameters(settings_)) all.push_back(unit_rows_of(*rule_, p));
    return all;
  }

  void write_gradients(int layer) {
    for (int t = 0; t < layout_.tensors(); ++t) {
      if (layout_.parameter(t).layer != layer) continue;
      const Tensor& gradient = gradients_.local()[static_cast<size_t>(t)];
      for (int64_t i = 0; i < gradient.elements(); i += kPattern) {
        std::memcpy(gradient.as<uint16_t>() + i, pattern_.data(),
                    static_cast<size_t>(std::min(kPattern, gradient.elements() - i)) * 2);
      }
    }
  }

  static constexpr int64_t kPattern = int64_t{1} << 20;
  Settings settings_;
  Communicator& communicator_;
  std::unique_ptr<Backend> backend_;
  MemoryLedger ledger_;
  std::unique_ptr<UpdateRule> rule_;
  ShardLayout layout_;
  ShardedState state_;
  BucketPlan plan_;
  Gradients gradients_;
  ShardGroups groups_;
  ShardedOptimizer optimizer_;
  std::vector<uint16_t> pattern_ = std::vector<uint16_t>(kPattern);
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

/// Bytes read and written a second by a copy, all ranks at once.
double copy_speed(Communicator& communicator) {
  constexpr size_t kBytes = size_t{256} << 20;
  std::vector<std::byte> from(kBytes, std::byte{1}), to(kBytes);
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) {
    communicator.barrier().wait("waiting to copy");
    const auto start = Clock::now();
    std::memcpy(to.data(), from.data(), kBytes);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  return 2.0 * static_cast<double>(kBytes) / median(seconds);
}

MemoryTable over_ranks(Communicator& communicator, const MemoryTable& own) {
  MemoryTable sum = own;
  communicator.all_reduce(sum.bytes, ReduceOp::kSum).wait("waiting for the ranks' bytes");
  return sum;
}

struct Measured {
  std::vector<double> step_ms, update_ms;
};

Measured measure(Training& training, int steps) {
  Measured measured;
  training.step();  // first touch of every page
  for (int i = 0; i < steps; ++i) {
    const StepTimes times = training.step();
    if (!times.outcome.applied) throw Error(ExitCode::kInternal, "a step was skipped");
    measured.step_ms.push_back(times.step_ms);
    measured.update_ms.push_back(times.outcome.update_ms);
  }
  return measured;
}

std::string name_of(const Sharding& s) {
  return fmt::format("stage {}{}", s.stage, s.release ? " + release" : "");
}

nlohmann::json measured(Communicator& communicator, const Settings& settings) {
  const double speed = copy_speed(communicator);
  Training training(communicator, settings);
  const Measured times = measure(training, settings.steps);
  const MemoryTable tagged = over_ranks(communicator, training.tagged());
  const MemoryTable predicted = over_ranks(communicator, training.predicted());
  const auto count = static_cast<double>(training.all_elements());
  const double floor_ms =
      1e3 * static_cast<double>(training.updated_elements()) * kUpdateBytes / speed;
  nlohmann::json result = {{"what", name_of(settings.sharding)},
                           {"ranks", communicator.world_size()},
                           {"transport", std::string(communicator.transport())},
                           {"parameters", training.all_elements()},
                           {"step_ms", median(times.step_ms)},
                           {"update_ms", median(times.update_ms)},
                           {"update_floor_ms", floor_ms},
                           {"copy_bytes_per_second", speed}};
  if (communicator.rank() != 0) return result;
  fmt::print("{}, {} ranks ({}), {:.3f}e9 parameters, AdamW V2, buckets of {} MiB\n\n",
             name_of(settings.sharding), communicator.world_size(), communicator.transport(),
             1e-9 * count, settings.bucket_bytes >> 20);
  fmt::print(
      "| bytes per parameter, summed over ranks | predicted | tagged |\n| --- | --- | --- |\n");
  for (size_t i = 0; i < kMemoryClasses; ++i) {
    const auto memory_class = static_cast<MemoryClass>(i);
    if (tagged[memory_class] == 0 && predicted[memory_class] == 0) continue;
    const std::string name(flashshard::name_of(memory_class));
    result["bytes"][name] = {{"predicted", predicted[memory_class]},
                             {"tagged", tagged[memory_class]}};
    fmt::print("| {} | {:.4f} | {:.4f} |\n", name,
               static_cast<double>(predicted[memory_class]) / count,
               static_cast<double>(tagged[memory_class]) / count);
  }
  fmt::print("| all | {:.4f} | {:.4f} |\n\n", static_cast<double>(predicted.total()) / count,
             static_cast<double>(tagged.total()) / count);
  fmt::print(
      "step {:.0f} ms; update {:.0f} ms a rank = {:.2f} of the floor {:.0f} ms ({} bytes an "
      "element at the copy's {:.1f} GB/s a rank)\n",
      median(times.step_ms), median(times.update_ms), median(times.update_ms) / floor_ms, floor_ms,
      kUpdateBytes, 1e-9 * speed);
  return result;
}

void run_rank(std::unique_ptr<Communicator> communicator, const Settings& settings) {
  const nlohmann::json result = measured(*communicator, settings);
  if (communicator->rank() == 0 && !settings.json.empty()) {
    FILE* file = std::fopen(settings.json.c_str(), "a");
    if (file == nullptr) throw Error(ExitCode::kUsage, "cannot write", settings.json);
    fmt::print(file, "{}\n", result.dump());
    std::fclose(file);
  }
}

Settings parse(int argc, char** argv) {
  Settings s;
  bool accumulator = false;
  CLI::App app("A ZeRO step with made-up gradients: bytes per parameter and the update's speed");
  app.add_option("--ranks", s.ranks, "Threads of this process, unless mpirun starts them")
      ->check(CLI::Range(1, 64));
  app.add_option("--stage", s.sharding.stage, "ZeRO stage")->check(CLI::Range(0, 3));
  app.add_flag("--release", s.sharding.release, "A gradient lives for one bucket");
  app.add_flag("--accumulator", accumulator, "Reduce into an fp32 accumulator");
  app.add_option("--hidden", s.hidden)->check(CLI::PositiveNumber);
  app.add_option("--layers", s.layers)->check(CLI::PositiveNumber);
  app.add_option("--vocabulary", s.vocabulary)->check(CLI::PositiveNumber);
  app.add_option("--bucket-bytes", s.bucket_bytes)->check(CLI::PositiveNumber);
  app.add_option("--steps", s.steps, "Timed ones")->check(CLI::PositiveNumber);
  app.add_option("--json", s.json, "A line is added to this file");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error) == 0 ? 0 : static_cast<int>(ExitCode::kUsage));
  }
  s.feed_forward = (s.hidden * 8 / 3 + 63) / 64 * 64;
  if (accumulator) s.sharding.reduce = ReduceTime::kEach;
  if (s.sharding.release) {
    s.sharding.clips = false;
    s.sharding.skips_buckets = true;
  }
  require_legal(s.sharding, "command line");
  return s;
}

}  // namespace

int main(int argc, char** argv) {
  // A rank that fails ends the process: the others would wait for it.
  const auto guarded = [](const auto& body) {
    try {
      body();
    } catch (const Error& error) {
      fmt::print(stderr, "error: {}\n", error.what());
      std::_Exit(static_cast<int>(error.code()));
    }
  };
  guarded([&] {
    const Settings settings = parse(argc, argv);
    if (launched_by_mpi()) {
      run_rank(connect_ranks(std::chrono::minutes(10)), settings);
      return;
    }
    auto communicators = make_thread_communicators(settings.ranks);
    std::vector<std::thread> ranks;
    for (auto& communicator : communicators) {
      ranks.emplace_back([&] { guarded([&] { run_rank(std::move(communicator), settings); }); });
    }
    for (auto& rank : ranks) rank.join();
  });
  return 0;
}
