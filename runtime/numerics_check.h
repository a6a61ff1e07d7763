// numerics.check: whether the number formats of a run can hold what it does (docs/numerics.md,
// "What is watched"). Before the first step settings and the learning rate are looked at, after
// each step the health counters. A finding is a line of the log (WARN) or the end of the run
// (REFUSE).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "kernels/numerics/update_args.h"
#include "optim/sharded_state.h"
#include "proto/run.pb.h"

namespace flashshard {

/// What is wrong, and what to do about it.
struct NumericsFinding {
  std::string kind;  // each is reported once
  std::string text;
};

/// Settings that are known to harm in the format of a resolved configuration.
std::vector<NumericsFinding> harmful_settings(const proto::RunConfig& config);

/// The shortest step that moves a weight of this magnitude: half its last bit in the master's
/// format, where rounding is stochastic half its last bit in fp32.
double shortest_step(WeightFormat format, Rounding rounding, float magnitude);

/// FlashOptim's test, for rules whose steps are about a learning rate long (ADAMW, ADAM, LION):
/// tensors whose largest weight the peak learning rate cannot move. Collective; every rank returns
/// the same.
std::optional<NumericsFinding> unmovable_weights(Communicator& communicator, Backend& backend,
                                                 const ShardedState& state,
                                                 const proto::RunConfig& config);

/// Counters beyond their limits; `health` is a sum over several steps.
std::vector<NumericsFinding> unhealthy_counters(const UpdateHealth& health,
                                                const proto::RunConfig& config);

class NumericsCheck {
 public:
  using Warn = std::function<void(std::string_view)>;
  NumericsCheck(const proto::RunConfig& config, Warn warn)
      : config_(config), warn_(std::move(warn)) {}

  /// Collective. These two throw AgreedError(kNumerics) with REFUSE.
  void before_first_step(Communicator& communicator, Backend& backend, const ShardedState& state);
  /// `health` of an update at the peak learning rate or after it, the same on all ranks.
  void after_update(const UpdateHealth& health);

 private:
  void report(const NumericsFinding& finding);
  /// Takes the counters out of which a verdict can be had.
  UpdateHealth take_full_windows();

  proto::RunConfig config_;
  Warn warn_;
  std::set<std::string, std::less<>> reported_;
  UpdateHealth window_;  // what is not yet enough for a verdict
};

}  // namespace flashshard
