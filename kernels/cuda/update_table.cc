#include "kernels/cuda/update_table.h"

#include <algorithm>
#include <cassert>

#include "kernels/cuda/pieces.h"
#include "kernels/error.h"
#include "kernels/numerics/rounding.h"

namespace flashshard::cuda {
namespace {

// Runs end at multiples of their span in the whole tensor, so no noise key changes within one.
static_assert((int64_t{1} << 33) % kRunSpan == 0);

/// Whether every array can be read kWide elements at a time, 16 bytes at most at once. Whole groups
/// keep to the alignment of the first.
bool allows_wide_accesses(const UpdateTensor& t) {
  const size_t correction = correction_bytes(t.weight_format) == 1 ? 8 : 16;
  const size_t state = has_codes(t.state_format) ? 8 : 16;
  return is_aligned(t.gradient, 16) && is_aligned(t.weight, 16) &&
         is_aligned(t.correction, correction) && is_aligned(t.momentum, state) &&
         is_aligned(t.variance, state);
}

class Planner {
 public:
  explicit Planner(const UpdateFactors& factors) : factors_(factors) {}

  void add(const UpdateTensor& t) {
    assert(t.first_element % kGroup == 0);
    if (t.health != nullptr) {
      throw Error(ExitCode::kInternal, "health counters are sampled on the CPU only",
                  "cuda::update");
    }
    const bool wide = has_wide_kernel(state_format(t), t.weight_format) && allows_wide_accesses(t);
    for_each_piece(t.count, t.first_element, wide, [&](const Piece& piece) { append(t, piece); });
  }
  std::vector<UpdateLaunch> take() { return std::move(launches_); }

 private:
  /// A rule without states goes with the kernels for fp32 state.
  StateFormat state_format(const UpdateTensor& t) const {
    return has_momentum(family_of(factors_)) ? t.state_format : StateFormat::kFP32;
  }

  UpdateTable& table_for(bool wide, const UpdateTensor& t) {
    const auto fits = [&](const UpdateLaunch& launch) {
      const UpdateTable& table = launch.table;
      return launch.wide == wide && table.state_format == state_format(t) &&
             table.weight_format == t.weight_format && table.gradient_dtype == t.gradient_dtype &&
             table.runs < kMostRuns;
    };
    const auto found = std::find_if(launches_.begin(), launches_.end(), fits);
    if (found != launches_.end()) return found->table;
    UpdateLaunch& launch = launches_.emplace_back();
    launch.wide = wide;
    launch.table.factors = factors_;
    launch.table.family = family_of(factors_);
    launch.table.state_format = state_format(t);
    launch.table.weight_format = t.weight_format;
    launch.table.gradient_dtype = t.gradient_dtype;
    return launch.table;
  }

  void append(const UpdateTensor& t, const Piece& piece) {
    UpdateTable& table = table_for(piece.wide, t);
    const int64_t first = piece.first, group = first / kGroup;
    const int64_t state_bytes = has_codes(t.state_format) ? 1 : 4;
    const auto element = static_cast<uint64_t>(t.first_element + first);
    const uint32_t first_tile = table.tiles;
    table.tiles += tiles_of(piece.count, piece.wide ? kWide : kNarrow);
    table.run[table.runs++] = {
        .gradient = advanced(t.gradient, first * static_cast<int64_t>(size_of(t.gradient_dtype))),
        .weight = advanced(t.weight, first * weight_bytes(t.weight_format)),
        .correction = advanced(t.correction, first * correction_bytes(t.weight_format)),
        .momentum = advanced(t.momentum, first * state_bytes),
        .variance = advanced(t.variance, first * state_bytes),
        .momentum_scale = advanced(t.momentum_scale, group * 2),
        .variance_scale = advanced(t.variance_scale, group * 2),
        .rejected_groups = t.rejected_groups,
        .count = piece.count,
        .first_tile = first_tile,
        .end_tile = table.tiles,
        .word8 = static_cast<uint32_t>(element / 4),
        .key8 = numerics::rounding_key(t.key, factors_.t, element >> 34),
        .word16 = static_cast<uint32_t>(element / 2),
        .key16 = numerics::rounding_key(t.key, factors_.t, element >> 33),
        .weight_decay_factor = t.weight_decay_factor,
        .coupled_decay = has_coupled_decay(factors_.rule) ? t.coupled_decay : 0.0f};
  }

  UpdateFactors factors_;
  std::vector<UpdateLaunch> launches_;
};

}  // namespace

std::vector<UpdateLaunch> plan_updates(std::span<const UpdateTensor> tensors,
                                       const UpdateFactors& factors) {
  Planner planner(factors);
  for (const UpdateTensor& tensor : tensors) planner.add(tensor);
  return planner.take();
}

}  // namespace flashshard::cuda
