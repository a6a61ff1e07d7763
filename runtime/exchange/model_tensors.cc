#include "runtime/exchange/model_tensors.h"

namespace flashshard::exchange {
namespace {

ModelTensor tensor_of(const ParameterSpec& parameter, int tensor, const std::string& name,
                      RowRange rows) {
  ModelTensor result{name, tensor, rows, {rows.count}};
  if (parameter.role != ParameterRole::kVector) result.shape.push_back(parameter.cols);
  return result;
}

}  // namespace

std::vector<ModelTensor> tensors_of(std::span<const ParameterSpec> parameters) {
  std::vector<ModelTensor> tensors;
  for (size_t t = 0; t < parameters.size(); ++t) {
    const ParameterSpec& parameter = parameters[t];
    const int tensor = static_cast<int>(t);
    if (parameter.parts.empty()) {
      tensors.push_back(tensor_of(parameter, tensor, parameter.name, {0, parameter.rows}));
    }
    for (const ParameterPart& part : parameter.parts) {
      tensors.push_back(tensor_of(parameter, tensor, part.name, {part.first_row, part.rows}));
    }
  }
  return tensors;
}

}  // namespace flashshard::exchange
