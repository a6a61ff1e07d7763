#include "kernels/cuda/sharding_tables.h"

#include <algorithm>
#include <string>

#include "kernels/cuda/pieces.h"
#include "kernels/error.h"

namespace flashshard::cuda {
namespace {

/// The bytes of kWide elements, 16 at most: what wide accesses are aligned to.
bool wide_at(const void* pointer, int64_t element_bytes) {
  return is_aligned(pointer, element_bytes == 1 ? 8 : 16);
}

std::vector<MasterCall> plan(WeightFormat format, float* values, void* weight, void* correction,
                             int64_t* rejected_groups, int64_t count) {
  std::vector<MasterCall> calls;
  const bool wide = wide_at(values, 4) && wide_at(weight, weight_bytes(format)) &&
                    wide_at(correction, correction_bytes(format));
  for_each_piece(count, 0, wide, [&](const Piece& piece) {
    calls.push_back({.format = format,
                     .wide = piece.wide,
                     .values = values + piece.first,
                     .weight = advanced(weight, piece.first * weight_bytes(format)),
                     .correction = advanced(correction, piece.first * correction_bytes(format)),
                     .rejected_groups = rejected_groups,
                     .count = piece.count});
  });
  return calls;
}

}  // namespace

std::vector<MasterCall> plan_masters(const EncodeMaster& call) {
  return plan(call.format, const_cast<float*>(call.values), call.weight, call.correction,
              call.rejected_groups, call.count);
}

std::vector<MasterCall> plan_masters(const DecodeMaster& call) {
  return plan(call.format, call.values, const_cast<void*>(call.weight),
              const_cast<void*>(call.correction), nullptr, call.count);
}

std::vector<FoldCall> plan_fold(const Fold& call) {
  if (call.inputs.empty() || call.inputs.size() > kMostInputs) {
    throw Error(ExitCode::kUsage, "a fold on a GPU takes 1 to " + std::to_string(kMostInputs) +
                                      " inputs, not " + std::to_string(call.inputs.size()));
  }
  const auto input_bytes = static_cast<int64_t>(size_of(call.input_dtype));
  const auto out_bytes = static_cast<int64_t>(size_of(call.out.dtype));
  const bool wide = wide_at(call.out.data, out_bytes) &&
                    std::all_of(call.inputs.begin(), call.inputs.end(),
                                [&](const void* input) { return wide_at(input, input_bytes); });
  std::vector<FoldCall> calls;
  for_each_piece(call.out.elements(), 0, wide, [&](const Piece& piece) {
    FoldCall& fold = calls.emplace_back();
    fold.wide = piece.wide;
    fold.accumulate = call.accumulate;
    fold.out_dtype = call.out.dtype;
    fold.input_dtype = call.input_dtype;
    fold.inputs = static_cast<int>(call.inputs.size());
    fold.count = piece.count;
    fold.out = advanced(call.out.data, piece.first * out_bytes);
    std::transform(call.inputs.begin(), call.inputs.end(), fold.input,
                   [&](const void* input) { return advanced(input, piece.first * input_bytes); });
  });
  return calls;
}

std::vector<NormTable> plan_norm(std::span<const Tensor> tensors, int64_t* sums) {
  std::vector<NormTable> tables;
  const auto table_for = [&](bool wide) -> NormTable& {
    const auto found = std::find_if(tables.begin(), tables.end(), [&](const NormTable& table) {
      return table.wide == wide && table.runs < kMostRuns;
    });
    if (found != tables.end()) return *found;
    NormTable& table = tables.emplace_back();
    table.wide = wide;
    table.sums = sums;
    return table;
  };
  for (const Tensor& tensor : tensors) {
    const auto bytes = static_cast<int64_t>(size_of(tensor.dtype));
    for_each_piece(tensor.elements(), 0, wide_at(tensor.data, bytes), [&](const Piece& piece) {
      NormTable& table = table_for(piece.wide);
      const uint32_t first_tile = table.tiles;
      table.tiles += tiles_of(piece.count, piece.wide ? kWide : kNarrow);
      table.run[table.runs++] = {.data = advanced(tensor.data, piece.first * bytes),
                                 .dtype = tensor.dtype,
                                 .count = piece.count,
                                 .first_tile = first_tile,
                                 .end_tile = table.tiles};
    });
  }
  return tables;
}

}  // namespace flashshard::cuda
