#include "launch/bench/optimizer_bench.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <ctime>
#include <deque>
#include <functional>
#include <string_view>

#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/update_loops.h"
#include "kernels/error.h"
#include "launch/bench/plain_update.h"
#include "launch/bench/update_memory.h"

namespace flashshard::launch {
namespace {

constexpr int64_t kChunk = 512 * kGroup;  // elements of a call, as in the backend
constexpr int kScalarRounds = 3;
constexpr std::string_view kPlainLoop = "plain_loop";

constexpr std::array<std::pair<std::string_view, Rule>, 5> kRules = {{{"ADAMW", Rule::kAdamW},
                                                                      {"ADAM", Rule::kAdam},
                                                                      {"LION", Rule::kLion},
                                                                      {"SGD", Rule::kSGD},
                                                                      {"SGDW", Rule::kSGDW}}};
constexpr std::array<std::pair<std::string_view, StateFormat>, 3> kFormats = {
    {{"V2", StateFormat::kCompanded},
     {"FLASHOPTIM_V1", StateFormat::kFlashOptim},
     {"FP32", StateFormat::kFP32}}};
constexpr std::array<int, 3> kMasterBits = {24, 32, 0};

template <class T>
bool chosen(const std::vector<T>& choice, const T& value) {
  return choice.empty() || std::ranges::find(choice, value) != choice.end();
}

std::string_view name_of(StateFormat format) {
  return std::ranges::find(kFormats, format, [](const auto& f) { return f.second; })->first;
}

std::vector<const cpu::UpdateLoops*> chosen_loops(const OptimizerBenchOptions& options) {
  const auto available = cpu::available_update_loops();
  for (const std::string& name : options.instruction_sets) {
    if (std::ranges::none_of(available, [&](const auto* loops) { return loops->name == name; })) {
      std::vector<std::string_view> names;
      for (const auto* loops : available) names.push_back(loops->name);
      throw Error(ExitCode::kUsage, fmt::format("{} is no instruction set of this machine", name),
                  "--isa", fmt::format("it has {}", fmt::join(names, ", ")));
    }
  }
  std::vector<const cpu::UpdateLoops*> result;
  for (const auto* loops : available) {
    if (chosen(options.instruction_sets, std::string(loops->name))) result.push_back(loops);
  }
  return result;
}

/// What the compiler made of the same step; null where the table has no such loop.
PlainUpdate plain_update(const UpdateCase& which, const PlainUpdates& table) {
  if (which.rule != Rule::kAdamW) return nullptr;
  if (which.state == StateFormat::kFP32) {
    return which.master_bits == 32 && table.name == kPlainLoop ? table.fp32 : nullptr;
  }
  if (which.master_bits != 24) return nullptr;
  if (which.state == StateFormat::kFlashOptim) return table.v1;
  return which.rounding == Rounding::kStochastic ? table.v2_stochastic : table.v2_nearest;
}

using Step = std::function<void(const UpdateTensor&, const UpdateFactors&, int64_t, int64_t)>;

/// The same step as training takes it, counting into `health`.
Step with_health(const cpu::UpdateLoops& loops, UpdateHealth& health) {
  return [&](const UpdateTensor& tensor, const UpdateFactors& factors, int64_t begin, int64_t end) {
    UpdateTensor counted = tensor;
    counted.health = &health;
    loops.update(counted, factors, begin, end);
  };
}

/// V1's loop evaluates in the order of FlashOptim's authors, so its last bits differ, and with them
/// a code now and then.
constexpr double kPlainTolerance = 0.05;  // learning rates, after three steps

void require_same_update(const UpdateCase& which, const Step& step, std::string_view name,
                         bool same_bits) {
  constexpr int64_t kElements = int64_t{1} << 12;
  const PageMemory gradients = make_gradients(kElements);
  UpdateMemory expected(which, kElements, gradients), actual(which, kElements, gradients);
  for (int i = 0; i < 3; ++i) {
    cpu::scalar_update_loops().update(expected.tensor(), expected.next_factors(), 0, kElements);
    step(actual.tensor(), actual.next_factors(), 0, kElements);
  }
  if (expected.same_bits(actual)) return;
  const double difference = expected.largest_difference(actual);
  if (!same_bits && difference < kPlainTolerance) return;
  throw Error(ExitCode::kInternal,
              fmt::format("{} of {} does another update than the scalar loop: weights differ by {} "
                          "learning rates",
                          name, name_of(which.state), difference));
}

/// Processor time with one thread, so that other programs on the machine hardly disturb; wall time
/// with more.
double seconds_now(int threads) {
  if (threads == 1) return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Times {
  std::vector<double> seconds;
  double median() const {
    std::vector<double> sorted = seconds;
    std::ranges::sort(sorted);
    return sorted[sorted.size() / 2];
  }
};

/// One thing to time, and what its rounds took.
struct Contender {
  UpdateMemory* memory = nullptr;
  std::string instruction_set, implementation;
  Step step;
  int rounds = 0;
  Times times = {};
  const UpdateHealth* health = nullptr;
};

/// Everything measured of one rule: states in every format, and the contenders on them.
class RuleBench {
 public:
  RuleBench(const OptimizerBenchOptions& options, Rule rule, const PageMemory& gradients)
      : options_(options), pool_(options.threads) {
    for (const auto& [name, state] : kFormats) {
      if (!chosen(options.formats, std::string(name))) continue;
      for (int bits : kMasterBits) {
        if (!chosen(options.master_bits, bits)) continue;
        add({.rule = rule, .state = state, .master_bits = bits, .rounding = options.rounding},
            gradients);
      }
    }
  }

  void measure() {
    size_t most = 0;
    for (const UpdateMemory& memory : memories_) most = std::max(most, bytes_of(memory));
    const PageMemory from(most / 2), to(most / 2);
    for (int round = 0; round < options_.repeat; ++round) {
      for (Contender& contender : contenders_) {
        if (round < contender.rounds) contender.times.seconds.push_back(time(contender));
      }
      for (size_t i = 0; i < memories_.size(); ++i) {
        copies_[i].seconds.push_back(time_copy(from, to, bytes_of(memories_[i]) / 2));
      }
    }
  }

  void add_rows(std::vector<OptimizerBenchRow>& rows, std::string_view rule) const {
    for (const Contender& contender : contenders_) {
      const UpdateCase& which = contender.memory->which();
      OptimizerBenchRow row;
      row.rule = rule;
      row.format = name_of(which.state);
      row.master_bits = which.master_bits;
      row.instruction_set = contender.instruction_set;
      row.implementation = contender.implementation;
      row.bytes_per_parameter = contender.memory->bytes_per_parameter();
      row.seconds = contender.times.median();
      row.shortest = std::ranges::min(contender.times.seconds);
      row.longest = std::ranges::max(contender.times.seconds);
      row.copy_seconds = copies_[index_of(contender.memory)].median();
      const double own = plain_seconds(which.state, which.master_bits, row.instruction_set);
      row.over_plain_loop = own / row.seconds;
      row.over_plain_loop_of_v1 =
          plain_seconds(StateFormat::kFlashOptim, 24, row.instruction_set) / row.seconds;
      if (contender.health != nullptr) row.sampled_groups = contender.health->sampled_groups;
      rows.push_back(std::move(row));
    }
  }

 private:
  void add(const UpdateCase& which, const PageMemory& gradients) {
    UpdateMemory& memory = memories_.emplace_back(which, options_.elements, gradients);
    copies_.emplace_back();
    for (const cpu::UpdateLoops* loops : chosen_loops(options_)) {
      const bool scalar = loops == &cpu::scalar_update_loops();
      const int rounds = scalar ? std::min(options_.repeat, kScalarRounds) : options_.repeat;
      require_same_update(which, loops->update, loops->name, true);
      contenders_.push_back(
          {&memory, std::string(loops->name), "flashshard", loops->update, rounds});
      if (options_.health) add_with_health(memory, *loops, rounds);
      for (const PlainUpdates& table : plain_updates()) {
        const PlainUpdate plain = plain_update(which, table);
        if (plain == nullptr || table.instruction_set != loops->name) continue;
        require_same_update(which, plain, table.name, which.state != StateFormat::kFlashOptim);
        contenders_.push_back(
            {&memory, std::string(loops->name), std::string(table.name), plain, rounds});
      }
    }
  }

  void add_with_health(UpdateMemory& memory, const cpu::UpdateLoops& loops, int rounds) {
    UpdateHealth& health = healths_.emplace_back();
    Contender contender{&memory, std::string(loops.name), "with_health", with_health(loops, health),
                        rounds};
    require_same_update(memory.which(), contender.step, loops.name, true);
    health = {};
    contender.health = &health;
    contenders_.push_back(std::move(contender));
  }

  size_t bytes_of(const UpdateMemory& memory) const {
    return static_cast<size_t>(memory.bytes_per_parameter() *
                               static_cast<double>(options_.elements));
  }
  size_t index_of(const UpdateMemory* memory) const {
    const auto found = std::ranges::find_if(memories_, [&](const auto& m) { return &m == memory; });
    return static_cast<size_t>(found - memories_.begin());
  }

  /// 0 where there is no such loop.
  double plain_seconds(StateFormat state, int bits, std::string_view instruction_set) const {
    for (const Contender& c : contenders_) {
      const UpdateCase& which = c.memory->which();
      if (c.implementation == kPlainLoop && which.state == state && which.master_bits == bits &&
          c.instruction_set == instruction_set) {
        return c.times.median();
      }
    }
    return 0;
  }

  double time(Contender& contender) {
    const UpdateTensor& tensor = contender.memory->tensor();
    const UpdateFactors factors = contender.memory->next_factors();
    const double start = seconds_now(options_.threads);
    pool_.run_ranges((tensor.count + kChunk - 1) / kChunk, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        contender.step(tensor, factors, chunk * kChunk,
                       std::min((chunk + 1) * kChunk, tensor.count));
      }
    });
    return seconds_now(options_.threads) - start;
  }

  double time_copy(const PageMemory& from, const PageMemory& to, size_t bytes) {
    const double start = seconds_now(options_.threads);
    pool_.run_ranges(static_cast<int64_t>(bytes), [&](int64_t first, int64_t last) {
      std::memcpy(to.data() + first, from.data() + first, static_cast<size_t>(last - first));
    });
    return seconds_now(options_.threads) - start;
  }

  const OptimizerBenchOptions& options_;
  cpu::ThreadPool pool_;
  std::deque<UpdateMemory> memories_;  // contenders point into it
  std::vector<Times> copies_;          // by memory
  std::deque<UpdateHealth> healths_;   // and into it
  std::vector<Contender> contenders_;
};

}  // namespace

std::vector<OptimizerBenchRow> bench_optimizer(const OptimizerBenchOptions& options) {
  chosen_loops(options);  // refuses before anything is made
  const PageMemory gradients = make_gradients(options.elements);
  std::vector<OptimizerBenchRow> rows;
  for (const auto& [name, rule] : kRules) {
    if (!chosen(options.rules, std::string(name))) continue;
    RuleBench bench(options, rule, gradients);
    bench.measure();
    bench.add_rows(rows, name);
  }
  return rows;
}

}  // namespace flashshard::launch
