#include "runtime/thread_placement.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>

#include "runtime/agreement.h"

namespace flashshard {
namespace {

using cpu::ProcessorList;

ProcessorList sorted(ProcessorList processors) {
  std::ranges::sort(processors);
  return processors;
}

/// What is dealt out to the ranks: cores, or where these are fewer than ranks their hardware
/// threads, the first of every core before the second of any.
std::vector<ProcessorList> units_of(const ProcessorShare& share) {
  std::vector<ProcessorList> units;
  if (std::ssize(share.cores) >= share.ranks) {
    for (const cpu::Core& core : share.cores) units.push_back(core.processors);
    return units;
  }
  for (size_t thread = 0, dealt = 1; dealt > 0; ++thread) {
    dealt = 0;
    for (const cpu::Core& core : share.cores) {
      if (thread >= core.processors.size()) continue;
      units.push_back({core.processors[thread]});
      ++dealt;
    }
  }
  return units;
}

/// The units of this rank: neighbours, hence of one memory node where that is possible.
ProcessorList part_of(const ProcessorShare& share, const std::vector<ProcessorList>& units) {
  const int64_t count = std::ssize(units);
  ProcessorList part;
  for (int64_t u = count * share.index / share.ranks; u < count * (share.index + 1) / share.ranks;
       ++u) {
    const ProcessorList& unit = units[static_cast<size_t>(u)];
    part.insert(part.end(), unit.begin(), unit.end());
  }
  return sorted(part);
}

std::string on_processors(const ProcessorList& processors) {
  return fmt::format("{} {}", processors.size() == 1 ? "CPU" : "CPUs",
                     cpu::processor_list_text(processors));
}

std::string text_of(const ThreadPlacement& placement, const ProcessorShare& share,
                    bool quota_decides) {
  std::string text =
      fmt::format("{} {} on {}", placement.threads, placement.threads == 1 ? "thread" : "threads",
                  on_processors(placement.processors));
  if (share.ranks > 1) {
    text += fmt::format("; {} ranks of this host share {}", share.ranks,
                        placement.bound ? on_processors(share.processors()) : "them");
  }
  if (quota_decides) {
    text += fmt::format("; the control group allows {:.1f} processors' time", *share.quota);
  }
  return text;
}

}  // namespace

ProcessorList ProcessorShare::processors() const {
  ProcessorList all;
  for (const cpu::Core& core : cores) {
    all.insert(all.end(), core.processors.begin(), core.processors.end());
  }
  return sorted(all);
}

ProcessorShare share_processors(Communicator& communicator) {
  const ProcessorList allowed = cpu::allowed_processors();
  const std::string text = cpu::processor_list_text(allowed);
  std::vector<uint64_t> hashes(static_cast<size_t>(communicator.world_size()));
  const auto own = static_cast<size_t>(communicator.rank());
  hashes[own] = XXH3_64bits(text.data(), text.size());
  gather_plain(communicator, "waiting for what every rank may run on", std::span(hashes));

  ProcessorShare share{cpu::read_cores(allowed), cpu::read_processor_quota(), 0, 0, 0};
  for (int r = 0; r < communicator.world_size(); ++r) {
    if (communicator.host(r) != communicator.host(communicator.rank())) continue;
    ++share.ranks_of_host;
    const bool shares = hashes[static_cast<size_t>(r)] == hashes[own];
    if (!shares) continue;
    if (r < communicator.rank()) ++share.index;
    ++share.ranks;
  }
  return share;
}

ThreadPlacement place_threads(const proto::RunConfig& config, const ProcessorShare& share) {
  const std::vector<ProcessorList> units = units_of(share);
  const auto count = static_cast<int>(units.size());
  const int of_cores = std::max(1, count / share.ranks);
  const int of_quota =
      share.quota ? std::max(1, static_cast<int>(std::min(*share.quota, 1e6) / share.ranks_of_host))
                  : of_cores;
  const bool chosen = config.run().threads() > 0;

  ThreadPlacement placement;
  placement.threads = chosen ? config.run().threads() : std::min(of_cores, of_quota);
  placement.processors = share.processors();
  const bool limited =
      share.quota && *share.quota < static_cast<double>(placement.processors.size());
  placement.bound = config.run().bind_cores() == proto::CoreBinding::AUTO && share.ranks > 1 &&
                    count >= share.ranks && !limited && placement.threads >= of_cores;
  if (placement.bound) placement.processors = part_of(share, units);
  placement.text = text_of(placement, share, !chosen && of_quota < of_cores);
  return placement;
}

ThreadPlacement settle_threads(const proto::RunConfig& config, const ProcessorShare& share) {
  ThreadPlacement placement = place_threads(config, share);
  if (!placement.bound || cpu::restrict_to(placement.processors)) return placement;
  proto::RunConfig unbound = config;
  unbound.mutable_run()->set_bind_cores(proto::CoreBinding::NONE);
  return place_threads(unbound, share);
}

}  // namespace flashshard
