#include "comm/call.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace flashshard {

namespace {

std::string_view name_of(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return "sum";
    case ReduceOp::kMax:
      return "max";
    case ReduceOp::kMin:
      return "min";
  }
  return "unknown reduction";
}

}  // namespace

int code_of(const CallSignature& signature) {
  switch (signature.verb) {
    case Verb::kAllToAll:
      return 0;
    case Verb::kAllGather:
      return 1;
    case Verb::kBroadcast:
      return 2;
    case Verb::kBarrier:
      return 3;
    case Verb::kAllReduce:
      break;
  }
  return 4 + static_cast<int>(signature.op);
}

std::string_view name_of_code(int code) {
  constexpr std::array<std::string_view, kSignatureCodes> kNames = {
      "all_to_all",      "all_gather",      "broadcast",      "barrier",
      "all_reduce(sum)", "all_reduce(max)", "all_reduce(min)"};
  return kNames.at(static_cast<size_t>(code));
}

std::string describe(const CallSignature& signature) {
  switch (signature.verb) {
    case Verb::kAllToAll:
      return "all_to_all";
    case Verb::kAllGather:
      return fmt::format("all_gather({} bytes)", signature.bytes);
    case Verb::kAllReduce:
      return fmt::format("all_reduce({}, {} values)", name_of(signature.op),
                         signature.bytes / sizeof(int64_t));
    case Verb::kBroadcast:
      return fmt::format("broadcast({} bytes from rank {})", signature.bytes, signature.root);
    case Verb::kBarrier:
      return "barrier";
  }
  return "unknown verb";
}

std::string name_ranks(std::span<const int> ranks, std::span<const std::string> hosts,
                       std::span<const int> numbers) {
  constexpr size_t kNamed = 8;
  std::string text;
  for (size_t i = 0; i < std::min(ranks.size(), kNamed); ++i) {
    const auto rank = static_cast<size_t>(ranks[i]);
    text +=
        fmt::format("{}rank {}", i == 0 ? "" : ", ", numbers.empty() ? ranks[i] : numbers[rank]);
    if (rank < hosts.size() && !hosts[rank].empty()) text += fmt::format(" ({})", hosts[rank]);
  }
  if (ranks.size() > kNamed) text += fmt::format(" and {} more", ranks.size() - kNamed);
  return text;
}

std::vector<int> numbers_of(std::span<const int> ranks, std::span<const int> numbers) {
  std::vector<int> named(ranks.begin(), ranks.end());
  if (numbers.empty()) return named;
  for (int& rank : named) rank = numbers[static_cast<size_t>(rank)];
  return named;
}

std::vector<int> ranks_of_color(Communicator& communicator, int color) {
  std::vector<int> colors(static_cast<size_t>(communicator.world_size()));
  colors[static_cast<size_t>(communicator.rank())] = color;
  std::vector<ByteRange> ranges;
  for (size_t p = 0; p < colors.size(); ++p) ranges.push_back({p * sizeof(int), sizeof(int)});
  communicator.all_gather(std::as_writable_bytes(std::span(colors)), ranges)
      .wait("the colors of a split");
  std::vector<int> members;
  for (size_t p = 0; p < colors.size(); ++p) {
    if (colors[p] == color) members.push_back(static_cast<int>(p));
  }
  return members;
}

std::string format_seconds(double seconds) { return fmt::format("{:.3g} s", seconds); }

void check_ranges(std::span<const ByteRange> ranges, size_t buffer_bytes, int world_size,
                  std::string_view where) {
  if (ranges.size() != static_cast<size_t>(world_size)) {
    throw Error(ExitCode::kInternal,
                fmt::format("{} byte ranges given for {} ranks", ranges.size(), world_size),
                std::string(where));
  }
  for (size_t p = 0; p < ranges.size(); ++p) {
    const ByteRange& range = ranges[p];
    if (range.offset > buffer_bytes || range.size > buffer_bytes - range.offset) {
      throw Error(ExitCode::kInternal,
                  fmt::format("the range of rank {} ({} bytes at {}) leaves the buffer of {} bytes",
                              p, range.size, range.offset, buffer_bytes),
                  std::string(where));
    }
  }
}

void check_own_slice(const ByteRange& send, const ByteRange& receive) {
  if (send.size != receive.size) {
    throw Error(
        ExitCode::kInternal,
        fmt::format("a rank sends {} bytes to itself and expects {}", send.size, receive.size),
        "all_to_all");
  }
}

void check_root(int root, int world_size) {
  if (root < 0 || root >= world_size) {
    throw Error(ExitCode::kInternal, fmt::format("root {} is not a rank of {}", root, world_size),
                "broadcast");
  }
}

void check_split(bool is_part, int color) {
  if (is_part) {
    throw Error(ExitCode::kInternal, "the communicator of a split is not split again", "split");
  }
  if (color < 0) {
    throw Error(ExitCode::kInternal, fmt::format("color {} is below 0", color), "split");
  }
}

void check_deadline(std::chrono::duration<double> deadline) {
  // An upper limit keeps the sum with the clock's now inside its range.
  constexpr double kTenYears = 3.2e8;
  if (!(deadline.count() > 0) || deadline.count() > kTenYears) {
    throw Error(ExitCode::kUsage,
                fmt::format("a deadline of {} seconds is not usable", deadline.count()),
                "communicator", "give a positive number of seconds");
  }
}

void combine(std::span<int64_t> values, const int64_t* other, ReduceOp op) {
  for (size_t i = 0; i < values.size(); ++i) {
    switch (op) {
      case ReduceOp::kSum:
        values[i] = static_cast<int64_t>(static_cast<uint64_t>(values[i]) +
                                         static_cast<uint64_t>(other[i]));
        break;
      case ReduceOp::kMax:
        values[i] = std::max(values[i], other[i]);
        break;
      case ReduceOp::kMin:
        values[i] = std::min(values[i], other[i]);
        break;
    }
  }
}

}  // namespace flashshard
