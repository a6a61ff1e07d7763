// How fast a checkpoint is saved and loaded, beside `dd` with fsync writing as many files of the
// same sizes, and `dd` reading them; in turns, because a machine's disk is not the same from one
// minute to the next. The ranks are threads of this process, and as many `dd` run at once.
//
//   build/checkpoint_speed --folder /scratch/speed                # 2.1 GiB of state, 2 ranks
//   build/checkpoint_speed --folder /dev/shm/speed --rounds 7     # what is left without a disk
//
// Before each reading the files leave the page cache (`dd iflag=nocache count=0`).
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "comm/threads.h"
#include "optim/sharded_state.h"
#include "runtime/checkpoint/load.h"
#include "runtime/checkpoint/save.h"
#include "runtime/checkpoint/staged_rows.h"

namespace {

using namespace flashshard;
namespace fs = std::filesystem;

struct Settings {
  std::string folder;
  int ranks = 2, rounds = 3;
  int64_t hidden = 2048, feed_forward = 5632, layers = 6, vocabulary = 32000;
};

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

ParameterSpec parameter(const std::string& name, int64_t rows, int64_t cols, int64_t layer) {
  ParameterSpec p;
  p.name = name;
  p.rows = rows;
  p.cols = cols;
  p.role = cols == 1 ? ParameterRole::kVector : ParameterRole::kMatrix;
  p.layer = static_cast<int>(layer);
  return p;
}

std::vector<ParameterSpec> parameters(const Settings& s) {
  std::vector<ParameterSpec> all = {parameter("embedding", s.vocabulary, s.hidden, 0)};
  for (int64_t layer = 1; layer <= s.layers; ++layer) {
    const std::string block = fmt::format("layers.{}.", layer - 1);
    all.push_back(parameter(block + "norm", s.hidden, 1, layer));
    all.push_back(parameter(block + "attention", 4 * s.hidden, s.hidden, layer));
    all.push_back(parameter(block + "gate_up", 2 * s.feed_forward, s.hidden, layer));
    all.push_back(parameter(block + "down", s.hidden, s.feed_forward, layer));
  }
  all.push_back(parameter("head", s.vocabulary, s.hidden, s.layers + 1));
  return all;
}

/// A rank's rows of a model, weights and AdamW's states in format V2, with bytes of no pattern.
class Rank {
 public:
  Rank(Communicator& communicator, const Settings& settings)
      : backend_(make_cpu_backend({1})),
        ledger_(*backend_),
        rule_(make_elementwise_rule(*backend_, {})),
        layout_(parameters(settings), units(settings), communicator.world_size()),
        state_(ledger_, layout_, *rule_, communicator.rank(), DType::kBF16, {.stage = 3}),
        views_(state_.shard_views()) {
    std::mt19937_64 random(static_cast<unsigned>(communicator.rank()) + 1);
    std::vector<uint64_t> pattern(1 << 17);
    for (uint64_t& value : pattern) value = random();
    const auto bytes = std::as_bytes(std::span(pattern));
    for (const auto& view : views_) {
      for (size_t at = 0; at < view.bytes.size(); at += bytes.size()) {
        const size_t count = std::min(bytes.size(), view.bytes.size() - at);
        std::memcpy(view.bytes.data() + at, bytes.data(), count);
      }
    }
  }

  size_t bytes() const {
    size_t sum = 0;
    for (const auto& view : views_) sum += view.bytes.size();
    return sum;
  }
  std::string save(const std::string& folder, int64_t step, Communicator& communicator) const {
    checkpoint::SaveRequest request;
    request.folder = folder;
    request.run.step = step;
    request.layout = &layout_;
    request.views = views_;
    return checkpoint::save(request, communicator).path;
  }
  void load(const std::string& step_folder, Communicator& communicator) const {
    checkpoint::LoadRequest request;
    request.step_folder = step_folder;
    request.layout = &layout_;
    request.views = views_;
    checkpoint::load(request, communicator);
  }
  /// Into staging for all of it, as a save in the background does before it writes.
  void stage(int rank, std::span<std::byte> staging) const {
    checkpoint::StagedRows rows(checkpoint::schema_of(layout_, views_), rank, views_, staging);
    rows.begin();
    rows.copy_ahead();
  }

 private:
  std::vector<int64_t> units(const Settings& settings) const {
    std::vector<int64_t> all;
    for (const ParameterSpec& p : parameters(settings)) all.push_back(unit_rows_of(*rule_, p));
    return all;
  }

  std::unique_ptr<Backend> backend_;
  MemoryLedger ledger_;
  std::unique_ptr<UpdateRule> rule_;
  ShardLayout layout_;
  ShardedState state_;
  std::vector<ShardTensorView> views_;
};

void shell(const std::string& command) {
  if (std::system(command.c_str()) != 0) throw Error(ExitCode::kInternal, "failed: " + command);
}

/// A shell line that runs `line(file)` over each rank's two files, the ranks at once.
std::string over_files(const Settings& settings, const std::string& step_folder,
                       const std::function<std::string(const std::string&)>& line) {
  std::string all;
  for (int r = 0; r < settings.ranks; ++r) {
    all += "(";
    for (const char* kind : {"weights", "state"}) {
      all += line(fmt::format("{}/{}-{:05}.safetensors", step_folder, kind, r)) + " && ";
    }
    all += "true) & ";
  }
  return all + "wait";
}

std::string forget(const std::string& file) {
  return fmt::format("dd if={} iflag=nocache count=0 status=none", file);
}

struct Times {
  std::vector<double> dd_write, save, dd_read, load, copy;
};

void measure(Communicator& communicator, const Settings& settings, Times& times) {
  const Rank rank(communicator, settings);
  const auto together = [&](const std::function<void()>& work) {
    communicator.barrier().wait("waiting to begin");
    return seconds_of([&] {
      work();
      communicator.barrier().wait("waiting for the end");
    });
  };
  const auto alone = [&](const std::string& command) {
    return together([&] {
      if (communicator.rank() == 0) shell(command);
    });
  };
  std::array<int64_t, 1> bytes = {static_cast<int64_t>(rank.bytes())};
  communicator.all_reduce(bytes, ReduceOp::kSum).wait("waiting for the sizes");
  const bool speaks = communicator.rank() == 0;
  const auto speed = [&](double seconds) { return static_cast<double>(bytes[0]) / 1e6 / seconds; };

  // What dd copies: as many files, of the same sizes and contents.
  const std::string source = rank.save(settings.folder, 1, communicator);
  const std::string copies = settings.folder + "/dd";
  if (speaks) {
    fmt::print("{} ranks, {:.2f} GiB of state in {} files, {}\n\n", settings.ranks,
               static_cast<double>(bytes[0]) / (1 << 30), 2 * settings.ranks, settings.folder);
    fmt::print(
        "| round | dd, fsync | save | ratio | dd, read | load | ratio |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    std::fflush(stdout);
  }
  for (int round = 1; round <= settings.rounds; ++round) {
    if (speaks) fs::create_directory(copies);
    times.dd_write.push_back(alone(over_files(settings, source, [&](const std::string& file) {
      return fmt::format("dd if={} of={}/{} bs=1M conv=fsync status=none", file, copies,
                         fs::path(file).filename().string());
    })));
    if (speaks) fs::remove_all(copies);
    std::string saved;
    times.save.push_back(
        together([&] { saved = rank.save(settings.folder, round + 1, communicator); }));

    alone(over_files(settings, saved, forget));
    times.dd_read.push_back(alone(over_files(settings, saved, [](const std::string& file) {
      return fmt::format("dd if={} of=/dev/null bs=1M status=none", file);
    })));
    alone(over_files(settings, saved, forget));
    times.load.push_back(together([&] { rank.load(saved, communicator); }));
    if (!speaks) continue;
    fs::remove_all(saved);
    fmt::print("| {} | {:.0f} MB/s | {:.0f} MB/s | {:.2f} | {:.0f} MB/s | {:.0f} MB/s | {:.2f} |\n",
               round, speed(times.dd_write.back()), speed(times.save.back()),
               times.dd_write.back() / times.save.back(), speed(times.dd_read.back()),
               speed(times.load.back()), times.dd_read.back() / times.load.back());
    std::fflush(stdout);
  }
  std::vector<std::byte> staging(rank.bytes());
  for (int i = 0; i < 4; ++i) {
    times.copy.push_back(together([&] { rank.stage(communicator.rank(), staging); }));
  }
  if (!speaks) return;
  const auto ratio = [](const std::vector<double>& dd, const std::vector<double>& ours) {
    return median(dd) / median(ours);
  };
  fmt::print(
      "| median | {:.0f} MB/s | {:.0f} MB/s | {:.2f} | {:.0f} MB/s | {:.0f} MB/s | {:.2f} |"
      "\n\ncopy into staging: {:.0f} ms, {:.0f} MB/s\n",
      speed(median(times.dd_write)), speed(median(times.save)), ratio(times.dd_write, times.save),
      speed(median(times.dd_read)), speed(median(times.load)), ratio(times.dd_read, times.load),
      1e3 * median(times.copy), speed(median(times.copy)));
}

Settings parse(int argc, char** argv) {
  Settings s;
  CLI::App app("Saving and loading a checkpoint beside dd with fsync");
  app.add_option("--folder", s.folder, "A new folder on the disk to measure; removed at the end")
      ->required();
  app.add_option("--ranks", s.ranks, "Threads of this process")->check(CLI::Range(1, 64));
  app.add_option("--rounds", s.rounds)->check(CLI::Range(1, 1000));
  app.add_option("--layers", s.layers, "51 million parameters each")->check(CLI::Range(1, 1000));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error) == 0 ? 0 : static_cast<int>(ExitCode::kUsage));
  }
  return s;
}

}  // namespace

int main(int argc, char** argv) {
  const Settings settings = parse(argc, argv);
  if (!fs::create_directory(settings.folder)) {
    fmt::print(stderr, "error: {} is there already\n", settings.folder);
    return static_cast<int>(ExitCode::kUsage);
  }
  auto communicators = make_thread_communicators(settings.ranks);
  std::vector<std::thread> threads;
  for (auto& communicator : communicators) {
    threads.emplace_back([&] {
      communicator->set_deadline(std::chrono::hours(1));
      Times times;
      try {
        measure(*communicator, settings, times);
      } catch (const Error& error) {
        // The others would wait for this rank.
        fmt::print(stderr, "error: {}\n", error.what());
        std::_Exit(static_cast<int>(error.code()));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  fs::remove_all(settings.folder);
  return 0;
}
