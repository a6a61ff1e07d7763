// Formats of torchtitan's metrics component; the memory share keeps one digit.
#include "runtime/metrics/step_line.h"

#include <fmt/core.h>

#include "runtime/metrics/number_format.h"

namespace flashshard::metrics {
namespace {

std::string memory_field(const MemoryUse& memory) {
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  const double used = static_cast<double>(memory.used);
  const double share =
      memory.capacity > 0 ? 100.0 * used / static_cast<double>(memory.capacity) : 0.0;
  return fmt::format("memory: {:5.2f}GiB({:.1f}%)", used / kGiB, share);
}

}  // namespace

std::string format_step_line(const StepLine& line) {
  const std::string mfu = line.mfu ? fmt::format("{:.2f}%", 100.0 * *line.mfu) : "N/A";
  return fmt::format(
      "step: {:2}  loss: {:>8.5f}  grad_norm: {:>7.4f}  {}  tps: {}  tflops: {}  mfu: {}",
      line.step, line.loss, line.grad_norm, memory_field(line.memory),
      with_thousands(line.tokens_per_second, 0), with_thousands(line.tflops, 2), mfu);
}

std::string format_validation_line(const ValidationLine& line) {
  return fmt::format("validate step: {:2}  loss: {:>7.4f}  {}  tps: {}", line.step, line.loss,
                     memory_field(line.memory), with_thousands(line.tokens_per_second, 0));
}

}  // namespace flashshard::metrics
