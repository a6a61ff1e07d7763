// The lines a person watches, one a step, in torchtitan's field order and formats so that existing
// parsers work.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace flashshard::metrics {

/// What the memory field shows: the resident set on a CPU, used device memory on a GPU. Bytes.
struct MemoryUse {
  int64_t used = 0;
  int64_t capacity = 0;
};

struct StepLine {
  int64_t step = 0;
  double loss = 0;       // nats per token, averaged over the step's tokens of all ranks
  double grad_norm = 0;  // before clipping
  MemoryUse memory;
  double tokens_per_second = 0;  // all ranks together
  double tflops = 0;             // per rank, 1e12 operations a second
  std::optional<double> mfu;     // fraction of the device's peak; empty where the peak is unknown
};

struct ValidationLine {
  int64_t step = 0;
  double loss = 0;  // nats per token
  MemoryUse memory;
  double tokens_per_second = 0;
};

/// "step: 10  loss:  3.65334  grad_norm:  1.2345  memory:  1.20GiB(15.0%)  tps: 5,762  tflops:
/// 300.12  mfu: 33.00%"
std::string format_step_line(const StepLine& line);
/// "validate step: 10  loss:  3.6533  memory:  1.20GiB(15.0%)  tps: 5,762"
std::string format_validation_line(const ValidationLine& line);

}  // namespace flashshard::metrics
