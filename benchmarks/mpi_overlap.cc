// How much of a reduction over MPI hides behind computing that begins after it?
//
// Every rank starts the reduction of a bucket (FoldReduction, bf16), computes for a while on one
// thread, and finishes the reduction. MPI moves bytes inside its own calls only, so who makes these
// calls decides. Three ways:
//   none    nobody, until finish()
//   poll    the computing thread, between pieces of its work, as a model does between layers
//   thread  another thread, every so often, for as long as the computing lasts
// Computing alone (C), reducing alone (R) and both together (B) are timed in turns, and what is
// left to wait for after the computing (W). Of the reduction's time 1 - W / R lies behind the
// computing, and (C + R - B) / R is saved: less, where moving bytes takes the core from the
// computing. Medians over rounds, of the slowest rank in each.
//
// Usage: mpirun -n N mpi_overlap [MiB of a bucket [pieces of the computing [rounds]]]
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "comm/connect.h"
#include "comm/fold_reduce.h"

namespace {

using namespace flashshard;
using Clock = std::chrono::steady_clock;

double milliseconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Work in registers: it takes a core and no memory bandwidth.
double compute(int64_t iterations) {
  std::array<double, 8> x = {1, 2, 3, 4, 5, 6, 7, 8};
  for (int64_t i = 0; i < iterations; ++i) {
    for (double& value : x) value = std::fma(value, 0.999999, 1e-6);
  }
  return std::accumulate(x.begin(), x.end(), 0.0);
}

enum class Progress : uint8_t { kNone, kPoll, kThread };

class Ranks {
 public:
  Ranks(Communicator& communicator, size_t bucket_bytes)
      : communicator_(communicator), backend_(make_cpu_backend({.threads = 1})) {
    const auto n = static_cast<size_t>(communicator.world_size());
    const size_t slice = bucket_bytes / n / sizeof(uint16_t) * sizeof(uint16_t);
    for (size_t p = 0; p < n; ++p) slices_.push_back({p * slice, slice});
    contributors_.resize(n);
    std::iota(contributors_.begin(), contributors_.end(), 0);
    packed_.resize(n * slice);
    staging_.resize(n * slice);
    sum_.resize(slice);
  }

  void start(FoldReduction& reduction) {
    const Tensor output(sum_.data(), DType::kBF16, {static_cast<int64_t>(sum_.size() / 2)});
    reduction.start({.packed = packed_,
                     .slices = slices_,
                     .staging = staging_,
                     .outputs = std::span(&output, 1),
                     .contributors = contributors_});
  }

  /// Milliseconds of the slowest rank, all beginning together.
  double slowest(const std::function<void()>& work) {
    communicator_.barrier().wait("the others");
    return largest(milliseconds_of(work));
  }

  double largest(double milliseconds) {
    std::vector<int64_t> microseconds = {static_cast<int64_t>(1000 * milliseconds)};
    communicator_.all_reduce(microseconds, ReduceOp::kMax).wait("the slowest rank");
    return static_cast<double>(microseconds[0]) / 1000;
  }

  double reduce_alone() {
    return slowest([&] {
      FoldReduction reduction(communicator_, *backend_);
      start(reduction);
      reduction.finish("the reduction alone");
    });
  }

  struct Together {
    double all_ms = 0, waiting_ms = 0;
  };
  Together both(Progress progress, int64_t iterations, int64_t pieces) {
    Together times;
    double waiting = 0;
    times.all_ms = slowest([&] {
      FoldReduction reduction(communicator_, *backend_);
      start(reduction);
      compute_with(reduction, progress, iterations, pieces);
      waiting = milliseconds_of([&] { reduction.finish("the reduction behind computing"); });
    });
    times.waiting_ms = largest(waiting);
    return times;
  }

  double compute_alone(int64_t iterations) {
    return slowest([&] { sink_ = compute(iterations); });
  }

 private:
  void compute_with(FoldReduction& reduction, Progress progress, int64_t iterations,
                    int64_t pieces) {
    std::atomic<bool> computing = true;
    std::thread thread;
    if (progress == Progress::kThread) {
      thread = std::thread([&] {
        while (computing && !reduction.progress()) {
          std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
      });
    }
    for (int64_t piece = 0; piece < pieces; ++piece) {
      sink_ = compute(iterations / pieces);
      if (progress == Progress::kPoll) reduction.progress();
    }
    computing = false;
    if (thread.joinable()) thread.join();
  }

  Communicator& communicator_;
  std::unique_ptr<Backend> backend_;
  std::vector<ByteRange> slices_;
  std::vector<int> contributors_;
  std::vector<std::byte> packed_, staging_, sum_;
  volatile double sink_ = 0;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void measure(Communicator& communicator, int64_t mib, int64_t pieces, int64_t rounds) {
  Ranks ranks(communicator, static_cast<size_t>(mib) << 20);
  // Twice as long as the reduction alone, so that all of it could hide.
  constexpr int64_t kProbe = 1 << 22;
  std::vector<double> reduction_ms, probe_ms;
  for (int i = 0; i < 5; ++i) {
    reduction_ms.push_back(ranks.reduce_alone());
    probe_ms.push_back(ranks.compute_alone(kProbe));
  }
  const auto iterations =
      static_cast<int64_t>(kProbe * 2 * median(reduction_ms) / median(probe_ms));
  if (communicator.rank() == 0) {
    fmt::print("# {} ranks, buckets of {} MiB, computing in {} pieces, median of {} rounds\n",
               communicator.world_size(), mib, pieces, rounds);
    fmt::print("{:8} {:>12} {:>12} {:>12} {:>12} {:>10} {:>10}\n", "progress", "compute ms",
               "reduce ms", "both ms", "waiting ms", "behind", "saved");
  }
  constexpr std::pair<Progress, std::string_view> kWays[] = {
      {Progress::kNone, "none"}, {Progress::kPoll, "poll"}, {Progress::kThread, "thread"}};
  std::array<std::vector<double>, 3> computes, reduces, both, waiting;
  for (int64_t round = 0; round < rounds; ++round) {
    for (size_t way = 0; way < std::size(kWays); ++way) {
      computes[way].push_back(ranks.compute_alone(iterations));
      reduces[way].push_back(ranks.reduce_alone());
      const Ranks::Together together = ranks.both(kWays[way].first, iterations, pieces);
      both[way].push_back(together.all_ms);
      waiting[way].push_back(together.waiting_ms);
    }
  }
  for (size_t way = 0; way < std::size(kWays) && communicator.rank() == 0; ++way) {
    const double c = median(computes[way]), r = median(reduces[way]), b = median(both[way]);
    const double w = median(waiting[way]);
    fmt::print("{:8} {:12.1f} {:12.1f} {:12.1f} {:12.1f} {:8.0f} % {:8.0f} %\n", kWays[way].second,
               c, r, b, w, 100 * (1 - w / r), 100 * (c + r - b) / r);
  }
}

int64_t argument(int count, char** values, int index, int64_t otherwise) {
  return count > index ? std::max<int64_t>(std::strtoll(values[index], nullptr, 10), 1) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto communicator = connect_ranks(std::chrono::seconds(60));
    measure(*communicator, argument(argc, argv, 1, 64), argument(argc, argv, 2, 16),
            argument(argc, argv, 3, 9));
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}
