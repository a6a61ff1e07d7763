#include "runtime/step_report.h"

#include <algorithm>
#include <limits>

#include "runtime/checkpoint/background_save.h"

namespace flashshard {

StepReport combine(const LossResult& loss, std::span<const RankReport> ranks) {
  StepReport report;
  report.loss = loss.token_count > 0 ? loss.loss_sum / static_cast<double>(loss.token_count)
                                     : std::numeric_limits<double>::quiet_NaN();
  double longest = -1;
  int64_t stop = 0;
  for (size_t r = 0; r < ranks.size(); ++r) {
    report.data_ms = std::max(report.data_ms, ranks[r].data_ms);
    report.forward_ms = std::max(report.forward_ms, ranks[r].forward_ms);
    report.backward_ms = std::max(report.backward_ms, ranks[r].backward_ms);
    report.peak_bytes = std::max(report.peak_bytes, ranks[r].peak_bytes);
    report.rejected_groups += ranks[r].rejected_groups;
    for (const auto& [name, counter] : kHealthCounters) {
      report.health.*counter += ranks[r].health.*counter;
    }
    stop = std::max(stop, ranks[r].stop_cause);
    const auto save = static_cast<checkpoint::BackgroundSave::Progress>(ranks[r].save);
    report.save_at_rest &= save != checkpoint::BackgroundSave::Progress::kWorking;
    report.save_failed |= save == checkpoint::BackgroundSave::Progress::kFailed;
    report.save_wait_ms = std::max(report.save_wait_ms, ranks[r].save_wait_ms);
    const double own = ranks[r].data_ms + ranks[r].forward_ms + ranks[r].backward_ms;
    if (own > longest) {
      longest = own;
      report.slowest_rank = static_cast<int64_t>(r);
    }
  }
  report.stop = static_cast<StopCause>(stop);
  return report;
}

}  // namespace flashshard
