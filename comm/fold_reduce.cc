#include "comm/fold_reduce.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "comm/call.h"

namespace flashshard {

namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ExitCode::kInternal, what, "fold reduction");
}

bool takes_part(std::span<const int> contributors, int rank) {
  return std::ranges::binary_search(contributors, rank);
}

bool is_float(DType dtype) { return dtype == DType::kBF16 || dtype == DType::kFP32; }

void check_contributors(std::span<const int> contributors, int world_size) {
  if (contributors.empty()) refuse("no rank contributes");
  const auto out_of_order = std::ranges::adjacent_find(contributors, std::greater_equal<>());
  if (out_of_order != contributors.end() || contributors.front() < 0 ||
      contributors.back() >= world_size) {
    refuse("the contributors are not ascending ranks");
  }
}

void check_outputs(const FoldReduce& call, size_t own_bytes) {
  if (!is_float(call.wire_dtype)) refuse("the wire's dtype is neither bf16 nor fp32");
  size_t bytes = 0;
  for (const Tensor& output : call.outputs) {
    if (!is_float(output.dtype)) refuse("an output is neither bf16 nor fp32");
    bytes += static_cast<size_t>(output.elements()) * size_of(call.wire_dtype);
  }
  if (bytes != own_bytes) {
    refuse(fmt::format("the outputs hold {} bytes on the wire, the slice {}", bytes, own_bytes));
  }
}

}  // namespace

size_t staging_bytes(std::span<const ByteRange> slices, std::span<const int> contributors,
                     int rank) {
  const size_t others = contributors.size() - (takes_part(contributors, rank) ? 1 : 0);
  return others * slices[static_cast<size_t>(rank)].size;
}

void FoldReduction::start(const FoldReduce& call) {
  const int rank = communicator_.rank();
  const int world_size = communicator_.world_size();
  if (in_flight_) refuse("the reduction before this one is not finished");
  check_contributors(call.contributors, world_size);
  const bool contributes = takes_part(call.contributors, rank);
  if (call.slices.size() != static_cast<size_t>(world_size)) refuse("one slice per rank is needed");
  if (contributes) check_ranges(call.slices, call.packed.size(), world_size, "fold reduction");
  const size_t own_bytes = call.slices[static_cast<size_t>(rank)].size;
  check_outputs(call, own_bytes);
  if (call.staging.size() < staging_bytes(call.slices, call.contributors, rank)) {
    refuse("the staging buffer is too small");
  }

  // The own contribution stays where it is: it is folded out of `packed`.
  std::vector<ByteRange> send(static_cast<size_t>(world_size)), receive(send.size());
  if (contributes) {
    std::ranges::copy(call.slices, send.begin());
    send[static_cast<size_t>(rank)] = {};
  }
  inputs_.clear();
  size_t staged = 0;
  for (int contributor : call.contributors) {
    if (contributor == rank) {
      inputs_.push_back(call.packed.data() + call.slices[static_cast<size_t>(rank)].offset);
      continue;
    }
    receive[static_cast<size_t>(contributor)] = {staged, own_bytes};
    inputs_.push_back(call.staging.data() + staged);
    staged += own_bytes;
  }
  wire_dtype_ = call.wire_dtype;
  outputs_.assign(call.outputs.begin(), call.outputs.end());
  exchange_ = communicator_.all_to_all(call.packed, send, call.staging, receive);
  in_flight_ = true;
}

void FoldReduction::finish(std::string_view what) {
  if (!std::exchange(in_flight_, false)) refuse("finish without start");
  exchange_.wait(what);
  std::vector<const void*> segment(inputs_.size());
  for (const Tensor& output : outputs_) {
    const auto wire_bytes = static_cast<size_t>(output.elements()) * size_of(wire_dtype_);
    std::ranges::copy(inputs_, segment.begin());
    if (wire_bytes > 0) {
      backend_.fold({.out = Tensor(output.data, output.dtype, {output.elements()}),
                     .inputs = segment,
                     .input_dtype = wire_dtype_});
    }
    for (const std::byte*& input : inputs_) input += wire_bytes;
  }
}

}  // namespace flashshard
