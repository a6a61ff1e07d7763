#include "optim/update_rule.h"

namespace flashshard {

int64_t unit_rows_of(const UpdateRule& rule, const ParameterSpec& parameter) {
  // Groups of 32 of the weight: the exact norm sums them and no shard may cut one.
  std::vector<RowQuantisation> tensors = {{parameter.cols, kGroup}};
  for (const StateTensorSpec& state : rule.states(parameter)) {
    tensors.push_back({parameter.cols, state.group});
  }
  return rows_per_unit(tensors);
}

}  // namespace flashshard
