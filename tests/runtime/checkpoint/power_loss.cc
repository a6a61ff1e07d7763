#include "tests/runtime/checkpoint/power_loss.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <set>
#include <utility>

#include "runtime/checkpoint/folder.h"
#include "runtime/checkpoint/safetensors.h"

namespace flashshard::checkpoint::test {
namespace {

/// Something that a cache holds: an entry of a folder, or (no name) the bytes of a file.
struct Choice {
  NodeId node = kNoNode;
  std::string name;
  size_t options = 0;  // 0: nothing of it survives; the last of an entry: all of it
  int host = 0;        // whose cache it is, or was last
};
using Picks = std::vector<size_t>;

// Of a file's unsynced bytes.
enum FilePick : size_t { kLost, kKept, kZeros, kCutShort, kZerosThenKept, kFilePicks };

size_t pick_of_all(const Choice& choice) {
  return choice.name.empty() ? kKept : choice.options - 1;
}

void add_choices(const Disk& disk, NodeId id, std::set<NodeId>& seen,
                 std::vector<Choice>& choices) {
  if (!seen.insert(id).second) return;
  const Disk::Node& node = disk.node(id);
  if (!node.is_folder && node.durable != node.current) {
    choices.push_back({id, "", kFilePicks, node.writer});
  }
  for (const auto& [name, entry] : node.entries) {
    if (!entry.pending.empty()) {
      choices.push_back({id, name, 1 + entry.pending.size(), entry.pending.back().host});
    }
    if (entry.durable != kNoNode) add_choices(disk, entry.durable, seen, choices);
    for (const Disk::Change& change : entry.pending) {
      if (change.node != kNoNode) add_choices(disk, change.node, seen, choices);
    }
  }
}

/// The bytes of a file that was only ever appended to.
std::string surviving_bytes(const Disk::Node& file, size_t pick) {
  const size_t old = file.durable.size();
  const size_t middle = old + (file.current.size() - old) / 2;
  switch (pick) {
    case kKept:
      return file.current;
    case kZeros:
      return file.durable + std::string(file.current.size() - old, '\0');
    case kCutShort:
      return file.current.substr(0, middle);
    case kZerosThenKept:
      return file.durable + std::string(middle - old, '\0') + file.current.substr(middle);
    default:
      return file.durable;
  }
}

/// Builds the disk that comes back.
class Survivors {
 public:
  Survivors(const Disk& disk, std::span<const Choice> choices, const Picks& picks) : disk_(disk) {
    for (size_t i = 0; i < choices.size(); ++i) {
      picks_[{choices[i].node, choices[i].name}] = picks[i];
    }
  }
  /// Nothing when a folder would have two names: no file system comes back with that.
  std::optional<Disk> run() {
    copy_entries(kRootNode, kRootNode);
    if (folder_with_two_names_) return std::nullopt;
    return std::move(result_);
  }

 private:
  size_t pick(NodeId node, const std::string& name) const {
    const auto found = picks_.find({node, name});
    return found == picks_.end() ? 0 : found->second;
  }
  void copy_entries(NodeId from, NodeId to) {
    for (const auto& [name, entry] : disk_.node(from).entries) {
      const size_t chosen = pick(from, name);
      const NodeId survivor = chosen == 0 ? entry.durable : entry.pending[chosen - 1].node;
      if (survivor != kNoNode) result_.node(to).entries[name].durable = copy(survivor);
    }
  }
  NodeId copy(NodeId id) {
    const Disk::Node& node = disk_.node(id);
    if (const auto made = made_.find(id); made != made_.end()) {
      folder_with_two_names_ |= node.is_folder;
      return made->second;
    }
    Disk::Node survivor;
    survivor.is_folder = node.is_folder;
    if (!node.is_folder) {
      survivor.durable = surviving_bytes(node, pick(id, ""));
      survivor.current = survivor.durable;
    }
    const NodeId copied = result_.add_node(std::move(survivor));
    made_[id] = copied;
    copy_entries(id, copied);
    return copied;
  }

  const Disk& disk_;
  std::map<std::pair<NodeId, std::string>, size_t> picks_;
  Disk result_;
  std::map<NodeId, NodeId> made_;
  bool folder_with_two_names_ = false;
};

std::vector<Picks> all_picks(std::span<const Choice> choices) {
  std::vector<Picks> all = {{}};
  for (const Choice& choice : choices) {
    std::vector<Picks> longer;
    for (const Picks& picks : all) {
      for (size_t pick = 0; pick < choice.options; ++pick) {
        longer.push_back(picks);
        longer.back().push_back(pick);
      }
    }
    all = std::move(longer);
  }
  return all;
}

std::vector<Picks> sampled_picks(std::span<const Choice> choices, const Sampling& sampling) {
  const Picks none(choices.size(), 0);
  Picks everything;
  for (const Choice& choice : choices) everything.push_back(pick_of_all(choice));
  std::vector<Picks> sample = {none, everything};
  std::set<int> hosts;
  for (const Choice& choice : choices) hosts.insert(choice.host);
  for (const int host : hosts) {
    Picks& picks = sample.emplace_back(everything);
    for (size_t i = 0; i < choices.size(); ++i) {
      if (choices[i].host == host) picks[i] = 0;
    }
  }
  for (size_t i = 0; i < choices.size(); ++i) {
    for (const Picks& base : {none, everything}) {
      for (size_t pick = 0; pick < choices[i].options; ++pick) {
        if (pick == base[i]) continue;
        sample.push_back(base);
        sample.back()[i] = pick;
      }
    }
  }
  std::mt19937_64 random(sampling.seed);
  for (size_t n = 0; n < sampling.random; ++n) {
    Picks& picks = sample.emplace_back();
    for (const Choice& choice : choices) picks.push_back(random() % choice.options);
  }
  return sample;
}

void sign(const Disk& disk, NodeId id, Xxh3& hash) {
  const Disk::Node& node = disk.node(id);
  hash.add(bytes_of(node.is_folder ? "folder" : node.current));
  for (const auto& [name, entry] : node.entries) {
    if (entry.current() == kNoNode) continue;
    hash.add(bytes_of(fmt::format("/{}/", name)));
    sign(disk, entry.current(), hash);
  }
  hash.add(bytes_of("/end/"));
}

std::string signature_of(const Disk& disk, NodeId id) {
  Xxh3 hash;
  sign(disk, id, hash);
  return hash.digest().hex();
}

}  // namespace

std::vector<Operation> in_an_order(const Disk& start, std::span<const Operation> log,
                                   uint64_t seed) {
  std::map<int, std::map<int, std::vector<Operation>>> by_phase_and_rank;
  for (const Operation& operation : log) {
    by_phase_and_rank[operation.phase][-operation.rank].push_back(operation);
  }
  std::vector<Operation> ordered;
  std::mt19937_64 random(seed);
  for (auto& [phase, by_rank] : by_phase_and_rank) {
    std::vector<size_t> turns;  // by rank, as often as it has operations
    std::vector<std::span<Operation>> ranks;
    for (auto& [rank, operations] : by_rank) {
      turns.insert(turns.end(), operations.size(), ranks.size());
      ranks.emplace_back(operations);
    }
    for (size_t i = turns.size(); seed != 0 && i > 1; --i) {
      std::swap(turns[i - 1], turns[random() % i]);
    }
    for (const size_t rank : turns) {
      ordered.push_back(std::move(ranks[rank].front()));
      ranks[rank] = ranks[rank].subspan(1);
    }
  }

  std::map<NodeId, NodeId> numbers;
  const auto renumber = [&](NodeId& id) {
    if (id <= start.last_node()) return;
    id = numbers.try_emplace(id, start.last_node() + 1 + static_cast<int>(numbers.size()))
             .first->second;
  };
  for (Operation& operation : ordered) {
    renumber(operation.node);
    renumber(operation.folder);
    renumber(operation.to_folder);
  }
  return ordered;
}

void for_each_power_loss(const Disk& disk, const Sampling& sampling,
                         const std::function<bool(const Disk&)>& visit) {
  std::vector<Choice> choices;
  std::set<NodeId> seen;
  add_choices(disk, kRootNode, seen, choices);
  size_t product = 1;
  for (const Choice& choice : choices) {
    product = std::min(product * choice.options, sampling.all_of + 1);
  }
  for (const Picks& picks :
       product <= sampling.all_of ? all_picks(choices) : sampled_picks(choices, sampling)) {
    const auto survivor = Survivors(disk, choices, picks).run();
    if (survivor && !visit(*survivor)) return;
  }
}

std::string signature(const Disk& disk) { return signature_of(disk, kRootNode); }

void Promises::note(const Operation& operation) {
  if (operation.kind == Operation::Kind::kReport) {
    const auto same = [&](const Reported& reported) { return reported.step == operation.step; };
    if (std::ranges::none_of(reported_, same)) reported_.push_back({operation.step, false});
  }
  if (operation.kind == Operation::Kind::kRename &&
      operation.to_name.find(".deleting-") != std::string::npos) {
    for (Reported& reported : reported_) {
      reported.is_being_deleted |= step_name(reported.step) == operation.name;
    }
  }
}

const Verification& Promises::verify_once(const Disk& disk, const std::string& path) {
  const auto [known, is_new] = known_.try_emplace(path + signature_of(disk, disk.find(path)));
  if (is_new) {
    SimulatedStorage storage(disk);
    HostFileSystem file_system(storage);
    known->second = verify_folder(path, file_system);
  }
  return known->second;
}

std::optional<Violation> Promises::broken_latest(const Disk& disk, const std::string& folder) {
  const NodeId latest = disk.find(folder + "/latest");
  if (latest == kNoNode) return std::nullopt;
  std::string name = disk.node(latest).current;
  if (!name.empty() && name.back() == '\n') name.pop_back();
  const std::string path = folder + "/" + name;
  const bool is_there = step_of_name(name) && disk.find(path) != kNoNode;
  if (is_there && verify_once(disk, path).findings.empty()) return std::nullopt;
  return Violation{'c', fmt::format("latest names {}", in_quotes(name))};
}

std::optional<Violation> Promises::broken_on(const Disk& disk, const std::string& folder) {
  SimulatedStorage storage(disk);
  HostFileSystem file_system(storage);
  const auto complete = list_complete(folder, file_system);
  std::set<int64_t> whole;
  std::optional<Violation> not_whole;
  for (const CompleteCheckpoint& checkpoint : complete) {
    const Verification& verification = verify_once(disk, checkpoint.path);
    if (!verification.findings.empty()) {
      not_whole = {'b', fmt::format("{} is complete by name, but {}", name_of_path(checkpoint.path),
                                    to_text(verification.findings.front()))};
    } else if (verification.hash.total() == contents_.at(checkpoint.step)) {
      whole.insert(checkpoint.step);
    } else {
      not_whole = {'b', fmt::format("{} is whole, but holds something else than was saved",
                                    name_of_path(checkpoint.path))};
    }
  }
  // The newest save that was reported, or one after it, is there; those before it unless deleted.
  for (size_t i = 0; i < reported_.size(); ++i) {
    const int64_t step = reported_[i].step;
    const bool newer_is_there = whole.upper_bound(step) != whole.end();
    if (whole.contains(step) || (reported_[i].is_being_deleted && newer_is_there)) continue;
    return Violation{'a', fmt::format("{}, reported as saved, is {}", step_name(step),
                                      not_whole ? not_whole->what : "gone")};
  }
  if (not_whole) return not_whole;
  return broken_latest(disk, folder);
}

std::optional<std::string> refused_start(const Disk& disk, const std::string& folder) {
  SimulatedStorage storage(disk);
  HostFileSystem file_system(storage);
  try {
    find_latest_complete(folder, file_system);
    return std::nullopt;
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace flashshard::checkpoint::test
