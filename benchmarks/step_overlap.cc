// How much communication of a training step hides behind its computing, by stage, over a link that
// carries the step's reductions in half of the backward's time (comm/delay.h).
//
// Ranks are threads. A layer's forward or backward is a sleep, a backward twice as long: what a
// device computes while the host looks after transfers; packing, folding and updating are real work
// of the host. A step is timed on the slow link and on one without delay; the difference is what
// was not hidden of the link's time for all bytes of the step.
//
// Usage: step_overlap [ranks [layers [milliseconds of a layer's backward]]]
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "comm/delay.h"
#include "comm/threads.h"
#include "optim/sharded_optimizer.h"
#include "optim/stopwatch.h"

namespace {

using namespace flashshard;

constexpr int64_t kRows = 512, kCols = 512;
constexpr int kSteps = 6;

struct Shape {
  int ranks = 2;
  int layers = 16;
  double backward_ms = 20;  // of a layer

  double all_backward_ms() const { return backward_ms * layers; }
  double gradient_bytes() const { return 2.0 * kRows * kCols * layers; }
};

struct Way {
  std::string_view name;
  Sharding sharding;
  double transfers;  // of all weights or gradients in a step
};

constexpr std::array kWays = {
    Way{"stage 0", {.stage = 0, .clips = false}, 2},
    Way{"stage 1", {.stage = 1, .clips = false}, 2},
    Way{"stage 2", {.stage = 2, .clips = false}, 2},
    Way{"stage 2, release",
        {.stage = 2, .release = true, .clips = false, .skips_buckets = true},
        2},
    // Forward and backward gather; the last two layers are still there when the backward begins.
    Way{"stage 3", {.stage = 3, .clips = false}, 3},
};

std::vector<ParameterSpec> parameters(int layers) {
  std::vector<ParameterSpec> all;
  for (int layer = 0; layer < layers; ++layer) {
    ParameterSpec matrix;
    matrix.name = "matrix";
    matrix.rows = kRows;
    matrix.cols = kCols;
    matrix.layer = layer;
    all.push_back(matrix);
  }
  return all;
}

void compute(double milliseconds) {
  std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(milliseconds));
}

/// Milliseconds of a step, the median of all but the first.
double step_ms(Communicator& communicator, const Shape& shape, const Sharding& sharding) {
  const auto backend = make_cpu_backend({1});
  MemoryLedger ledger(*backend);
  const auto rule = make_elementwise_rule(*backend, {});
  const auto specs = parameters(shape.layers);
  std::vector<int64_t> units;
  for (const auto& spec : specs) units.push_back(unit_rows_of(*rule, spec));
  const ShardLayout layout(specs, units, shape.ranks);
  ShardedState state(ledger, layout, *rule, communicator.rank(), DType::kBF16, sharding);
  const BucketPlan plan(layout, 2 * kRows * kCols, 2);  // a bucket a layer
  Gradients gradients(ledger, plan, communicator.rank(), {sharding, DType::kBF16});
  ShardedOptimizerOptions options;
  options.clip_norm = 0;
  ShardGroups groups(communicator, gradients.placement());
  ShardedOptimizer optimizer(groups, ledger, state, gradients, *rule, options);
  std::vector<double> times;
  for (int step = 0; step <= kSteps; ++step) {
    communicator.barrier().wait("the next step");
    const Stopwatch watch;
    optimizer.begin_round({.contributors = shape.ranks, .learning_rate = 1e-3, .tokens = 1});
    optimizer.begin_pass(true);
    for (int layer = 0; layer < shape.layers; ++layer) {
      optimizer.before_layer(layer);
      compute(shape.backward_ms / 2);
    }
    for (int layer = shape.layers - 1; layer >= 0; --layer) {
      if (layer > 0 && layer + 1 < shape.layers) optimizer.before_layer(layer);
      compute(shape.backward_ms);
      optimizer.layer_ready(layer);
    }
    (void)optimizer.step(1e-3, 1);
    if (step > 0) times.push_back(watch.milliseconds());
  }
  optimizer.finish_gathers();
  std::ranges::sort(times);
  return times[times.size() / 2];
}

double measured(const Shape& shape, const Sharding& sharding, const LinkOptions* link) {
  auto communicators = make_thread_communicators(shape.ranks);
  std::vector<double> times(communicators.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < communicators.size(); ++r) {
    threads.emplace_back([&, r] {
      auto communicator = std::move(communicators[r]);
      if (link != nullptr) communicator = make_delayed_communicator(std::move(communicator), *link);
      times[r] = step_ms(*communicator, shape, sharding);
    });
  }
  for (auto& thread : threads) thread.join();
  return *std::ranges::max_element(times);
}

}  // namespace

int main(int argc, char** argv) {
  Shape shape;
  if (argc > 1) shape.ranks = std::max(2, std::atoi(argv[1]));
  if (argc > 2) shape.layers = std::max(3, std::atoi(argv[2]));
  if (argc > 3) shape.backward_ms = std::max(1.0, std::atof(argv[3]));
  // All gradients cross a rank's link but for its own rows.
  const double bytes = shape.gradient_bytes() * (shape.ranks - 1) / shape.ranks;
  const double once_ms = shape.all_backward_ms() / 2;
  const LinkOptions link{.bytes_per_second = bytes / once_ms * 1e3};
  fmt::print(
      "{} ranks, {} layers, backward {:.0f} ms, link {:.2f} MB/s: {:.0f} ms for all gradients\n",
      shape.ranks, shape.layers, shape.all_backward_ms(), link.bytes_per_second / 1e6, once_ms);
  for (const Way& way : kWays) {
    const double fast = measured(shape, way.sharding, nullptr);
    const double slow = measured(shape, way.sharding, &link);
    const double on_link = way.transfers * once_ms;
    fmt::print(
        "{:<17} step {:7.1f} ms, without delay {:7.1f} ms; {:6.1f} ms on the link, {:5.1f} % "
        "hidden\n",
        way.name, slow, fast, on_link, 100 * (1 - (slow - fast) / on_link));
  }
  return 0;
}
