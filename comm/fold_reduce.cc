#include "comm/fold_reduce.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "comm/call.h"

namespace flashshard {

/// Where things stand in the staging buffer of a TWO_LEVEL reduction: the own group's partials of
/// the slices relayed here, the partials of the own slice from the relays of the groups, and the
/// relayed slices from the other contributors of the own group.
struct TwoLevelPlan {
  std::vector<int> members;  // contributors of the own group
  std::vector<int> relays;   // of the own slice, one for each group with a contributor
  RankGroups::Owners owners;
  ByteRange relayed;           // their slices inside the packed contribution
  size_t partial_bytes = 0;    // of all slices relayed here; 0 when the group has no contributor
  size_t received_bytes = 0;   // of one partial of the own slice
  size_t incoming_offset = 0;  // where the relayed slices begin
  size_t staging_bytes = 0;
};

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
    if (call.accumulate && output.dtype != DType::kFP32) {
      refuse("an output that the sum starts with is not fp32");
    }
    bytes += static_cast<size_t>(output.elements()) * size_of(call.wire_dtype);
  }
  if (bytes != own_bytes) {
    refuse(fmt::format("the outputs hold {} bytes on the wire, the slice {}", bytes, own_bytes));
  }
}

void check_order(const FoldReduce& call) {
  if (call.order.kind == ReductionOrder::Kind::kFlat) return;
  if (call.order.group < 1) refuse(fmt::format("groups of {} ranks", call.order.group));
  for (size_t p = 1; p < call.slices.size(); ++p) {
    const ByteRange& before = call.slices[p - 1];
    if (call.slices[p].offset != before.offset + before.size) {
      refuse(fmt::format("the slice of rank {} does not begin where the one before it ends", p));
    }
  }
  if (reinterpret_cast<uintptr_t>(call.staging.data()) % alignof(float) != 0) {
    refuse("the staging buffer is not aligned as fp32");
  }
}

/// The slices of consecutive owners, which stand one behind the other.
ByteRange slices_of(std::span<const ByteRange> slices, RankGroups::Owners owners) {
  if (owners.begin == owners.end) return {};
  const ByteRange& first = slices[static_cast<size_t>(owners.begin)];
  const ByteRange& last = slices[static_cast<size_t>(owners.end - 1)];
  return {first.offset, last.offset + last.size - first.offset};
}

TwoLevelPlan plan_two_level(std::span<const ByteRange> slices, std::span<const int> contributors,
                            int rank, int group_size, DType wire_dtype) {
  const RankGroups groups(static_cast<int>(slices.size()), group_size);
  const size_t widening = sizeof(float) / size_of(wire_dtype);
  TwoLevelPlan plan;
  int last_group = -1;
  for (int contributor : contributors) {
    const int group = groups.group_of(contributor);
    if (group == groups.group_of(rank)) plan.members.push_back(contributor);
    if (group != last_group) plan.relays.push_back(groups.relay(group, rank));
    last_group = group;
  }
  plan.owners = groups.relayed_by(rank);
  plan.relayed = slices_of(slices, plan.owners);
  if (!plan.members.empty()) plan.partial_bytes = plan.relayed.size * widening;
  plan.received_bytes = slices[static_cast<size_t>(rank)].size * widening;
  const auto from_others = plan.relays.size() - (takes_part(plan.relays, rank) ? 1 : 0);
  plan.incoming_offset = plan.partial_bytes + from_others * plan.received_bytes;
  const auto others = plan.members.size() - (takes_part(plan.members, rank) ? 1 : 0);
  plan.staging_bytes = plan.incoming_offset + others * plan.relayed.size;
  return plan;
}

}  // namespace

size_t staging_bytes(std::span<const ByteRange> slices, std::span<const int> contributors, int rank,
                     const ReductionOrder& order, DType wire_dtype) {
  if (order.kind == ReductionOrder::Kind::kTwoLevel) {
    return plan_two_level(slices, contributors, rank, order.group, wire_dtype).staging_bytes;
  }
  const size_t others = contributors.size() - (takes_part(contributors, rank) ? 1 : 0);
  return others * slices[static_cast<size_t>(rank)].size;
}

void FoldReduction::start(const FoldReduce& call) {
  const int rank = communicator_.rank();
  const int world_size = communicator_.world_size();
  if (in_flight_) refuse("the reduction before this one is not finished");
  check_contributors(call.contributors, world_size);
  if (call.slices.size() != static_cast<size_t>(world_size)) refuse("one slice per rank is needed");
  if (takes_part(call.contributors, rank)) {
    check_ranges(call.slices, call.packed.size(), world_size, "fold reduction");
  }
  check_outputs(call, call.slices[static_cast<size_t>(rank)].size);
  check_order(call);
  if (call.staging.size() <
      staging_bytes(call.slices, call.contributors, rank, call.order, call.wire_dtype)) {
    refuse("the staging buffer is too small");
  }
  wire_dtype_ = call.wire_dtype;
  accumulate_ = call.accumulate;
  outputs_.assign(call.outputs.begin(), call.outputs.end());
  inputs_.clear();
  if (call.order.kind == ReductionOrder::Kind::kTwoLevel) {
    start_two_level(call);
  } else {
    start_flat(call);
  }
  in_flight_ = true;
}

void FoldReduction::start_flat(const FoldReduce& call) {
  const int rank = communicator_.rank();
  const ByteRange own = call.slices[static_cast<size_t>(rank)];
  // The own contribution stays where it is: it is folded out of `packed`.
  std::vector<ByteRange> send(call.slices.size()), receive(send.size());
  if (takes_part(call.contributors, rank)) {
    std::ranges::copy(call.slices, send.begin());
    send[static_cast<size_t>(rank)] = {};
  }
  size_t staged = 0;
  for (int contributor : call.contributors) {
    if (contributor == rank) {
      inputs_.push_back(call.packed.data() + own.offset);
      continue;
    }
    receive[static_cast<size_t>(contributor)] = {staged, own.size};
    inputs_.push_back(call.staging.data() + staged);
    staged += own.size;
  }
  input_dtype_ = call.wire_dtype;
  exchange_ = communicator_.all_to_all(call.packed, send, call.staging, receive);
}

void FoldReduction::start_two_level(const FoldReduce& call) {
  const int rank = communicator_.rank();
  const TwoLevelPlan plan =
      plan_two_level(call.slices, call.contributors, rank, call.order.group, call.wire_dtype);
  const RankGroups groups(communicator_.world_size(), call.order.group);
  const bool contributes = takes_part(call.contributors, rank);
  std::vector<ByteRange> send(call.slices.size()), receive(send.size());
  const int first = groups.first(groups.group_of(rank));
  for (int member = first; member < first + groups.size(groups.group_of(rank)); ++member) {
    if (!contributes || member == rank) continue;
    send[static_cast<size_t>(member)] = slices_of(call.slices, groups.relayed_by(member));
  }
  relay_.inputs.clear();
  size_t staged = plan.incoming_offset;
  for (int member : plan.members) {
    if (member == rank) {
      relay_.inputs.push_back(call.packed.data() + plan.relayed.offset);
      continue;
    }
    receive[static_cast<size_t>(member)] = {staged, plan.relayed.size};
    relay_.inputs.push_back(call.staging.data() + staged);
    staged += plan.relayed.size;
  }
  lay_out_partials(call, plan);
  exchange_ = communicator_.all_to_all(call.packed, send, call.staging, receive);
  relay_pending_ = true;
}

void FoldReduction::lay_out_partials(const FoldReduce& call, const TwoLevelPlan& plan) {
  const int rank = communicator_.rank();
  const size_t widening = sizeof(float) / size_of(call.wire_dtype);
  relay_.staging = call.staging;
  relay_.partials = Tensor(call.staging.data(), DType::kFP32,
                           {static_cast<int64_t>(plan.partial_bytes / sizeof(float))});
  relay_.send.assign(call.slices.size(), {});
  relay_.receive.assign(call.slices.size(), {});
  const std::byte* own_partial = call.staging.data();
  size_t offset = 0;
  for (int owner = plan.owners.begin; owner < plan.owners.end && plan.partial_bytes > 0; ++owner) {
    const size_t bytes = call.slices[static_cast<size_t>(owner)].size * widening;
    if (owner == rank) {
      own_partial += offset;
    } else {
      relay_.send[static_cast<size_t>(owner)] = {offset, bytes};
    }
    offset += bytes;
  }
  for (int relay : plan.relays) {
    if (relay == rank) {
      inputs_.push_back(own_partial);
      continue;
    }
    relay_.receive[static_cast<size_t>(relay)] = {offset, plan.received_bytes};
    inputs_.push_back(call.staging.data() + offset);
    offset += plan.received_bytes;
  }
  input_dtype_ = DType::kFP32;
}

void FoldReduction::advance(std::string_view what) {
  if (!std::exchange(relay_pending_, false)) return;
  exchange_.wait(what);
  if (relay_.partials.elements() > 0) {
    backend_.fold({.out = relay_.partials, .inputs = relay_.inputs, .input_dtype = wire_dtype_});
    backend_.synchronize();
  }
  exchange_ = communicator_.all_to_all(relay_.staging, relay_.send, relay_.staging, relay_.receive);
}

void FoldReduction::finish(std::string_view what) {
  if (!std::exchange(in_flight_, false)) refuse("finish without start");
  advance(what);
  exchange_.wait(what);
  std::vector<const void*> segment(inputs_.size());
  for (const Tensor& output : outputs_) {
    const auto bytes = static_cast<size_t>(output.elements()) * size_of(input_dtype_);
    std::ranges::copy(inputs_, segment.begin());
    if (bytes > 0) {
      backend_.fold({.out = Tensor(output.data, output.dtype, {output.elements()}),
                     .inputs = segment,
                     .input_dtype = input_dtype_,
                     .accumulate = accumulate_});
    }
    for (const std::byte*& input : inputs_) input += bytes;
  }
}

}  // namespace flashshard
