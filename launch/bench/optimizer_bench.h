// `flashshard bench optimizer`: how fast a step of each rule goes over its state, in each format
// and instruction set, beside a copy of the same number of bytes and, for AdamW, beside plain loops
// that the compiler vectorised. All of a rule's measurements take turns, round by round, so that
// whatever else the machine does falls on all of them.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/numerics/update_args.h"

namespace flashshard::launch {

struct OptimizerBenchOptions {
  int64_t elements = int64_t{1} << 23;  // a multiple of 32
  int threads = 1;
  int repeat = 7;  // rounds; the scalar loops take part in at most three
  Rounding rounding = Rounding::kStochastic;
  bool health = false;  // each loop once more, with the health counters of training
  // Names as in the configuration (scalar, avx2, ... for instruction sets); empty: all there are.
  std::vector<std::string> rules;    // ADAMW, ADAM, LION, SGD, SGDW
  std::vector<std::string> formats;  // V2, FLASHOPTIM_V1, FP32
  std::vector<int> master_bits;      // 24, 32, 0
  std::vector<std::string> instruction_sets;
};

/// One loop on one rule, format and instruction set.
struct OptimizerBenchRow {
  std::string rule, format;
  int master_bits = 24;
  std::string instruction_set;
  std::string implementation;      // "flashshard", "with_health", "plain_loop" or "hinted_loop"
  double bytes_per_parameter = 0;  // read and written
  double seconds = 0;              // median of the rounds
  double shortest = 0, longest = 0;
  double copy_seconds = 0;           // median copy of as many bytes
  double over_plain_loop = 0;        // times as fast as the plain loop of its format; 0: none
  double over_plain_loop_of_v1 = 0;  // and as that of V1 with a 24-bit master
  int64_t sampled_groups = 0;        // with_health: looked at in all rounds together

  double parameters_per_second(int64_t elements) const {
    return static_cast<double>(elements) / seconds;
  }
  double bytes_per_second(int64_t elements) const {
    return parameters_per_second(elements) * bytes_per_parameter;
  }
  double times_the_copy() const { return seconds / copy_seconds; }
};

/// Compares every loop with the scalar one on a small state first: what is not the same update is
/// not timed. Throws Error(kUsage) for a name that is not there, Error(kInternal) for other bits.
std::vector<OptimizerBenchRow> bench_optimizer(const OptimizerBenchOptions& options);

/// As people read it, and as programs do (docs/cli.md has the fields).
std::string to_text(const OptimizerBenchOptions& options,
                    const std::vector<OptimizerBenchRow>& rows);
nlohmann::ordered_json to_json(const OptimizerBenchOptions& options,
                               const std::vector<OptimizerBenchRow>& rows);

}  // namespace flashshard::launch
