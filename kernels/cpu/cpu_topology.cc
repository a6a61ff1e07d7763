// Linux: sched_getaffinity(2), /sys/devices/system (Documentation/admin-guide/cputopology.rst) and
// control groups (cgroups(7)).
#include "kernels/cpu/cpu_topology.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <thread>
#include <utility>

namespace flashshard::cpu {
namespace {

namespace fs = std::filesystem;

constexpr int kMostProcessors = 1 << 16;

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

template <class Number>
std::optional<Number> parse_number(std::string_view text) {
  Number number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::optional<int> parse_processor(std::string_view text) {
  const auto number = parse_number<int>(text);
  return number && *number >= 0 && *number < kMostProcessors ? number : std::nullopt;
}

/// The memory node of every processor that a node lists.
std::map<int, int> read_nodes(const fs::path& sys) {
  std::map<int, int> node_of;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(sys / "devices/system/node", error)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("node")) continue;
    const auto node = parse_number<int>(std::string_view(name).substr(4));
    const auto processors = parse_processor_list(first_line(entry.path() / "cpulist"));
    if (!node || !processors) continue;
    for (const int processor : *processors) node_of[processor] = *node;
  }
  return node_of;
}

/// A kernel's set of as many processors as it takes.
class KernelSet {
 public:
  explicit KernelSet(int processors)
      : bytes_(CPU_ALLOC_SIZE(processors)), set_(CPU_ALLOC(processors)) {
    if (set_ == nullptr) throw std::bad_alloc();
    CPU_ZERO_S(bytes_, set_.get());
  }
  cpu_set_t* get() const { return set_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(cpu_set_t* set) const { CPU_FREE(set); }
  };
  size_t bytes_;
  std::unique_ptr<cpu_set_t, Free> set_;
};

/// "200000 100000" of cpu.max; "max" stands for no limit.
std::optional<double> quota_of(std::string_view quota, std::string_view period) {
  const auto microseconds = parse_number<int64_t>(quota);
  const auto of = parse_number<int64_t>(period);
  if (!microseconds || !of || *microseconds <= 0 || *of <= 0) return std::nullopt;
  return static_cast<double>(*microseconds) / static_cast<double>(*of);
}

std::optional<double> group_quota(const fs::path& group, bool unified) {
  if (!unified) {
    return quota_of(first_line(group / "cpu.cfs_quota_us"),
                    first_line(group / "cpu.cfs_period_us"));
  }
  const std::string line = first_line(group / "cpu.max");
  const size_t space = line.find(' ');
  if (space == std::string::npos) return std::nullopt;
  return quota_of(std::string_view(line).substr(0, space),
                  std::string_view(line).substr(space + 1));
}

/// A line of /proc/self/cgroup, "4:cpu,cpuacct:/path" or "0::/path".
struct Membership {
  std::string controllers;
  std::string path;
};

std::optional<Membership> parse_membership(const std::string& line) {
  const size_t first = line.find(':');
  const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
  if (second == std::string::npos) return std::nullopt;
  return Membership{line.substr(first + 1, second - first - 1), line.substr(second + 1)};
}

bool controls_processors(const std::string& controllers) {
  std::istringstream names(controllers);
  for (std::string name; std::getline(names, name, ',');) {
    if (name == "cpu") return true;
  }
  return false;
}

}  // namespace

std::optional<ProcessorList> parse_processor_list(std::string_view text) {
  ProcessorList processors;
  while (!text.empty()) {
    const std::string_view part = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), part.size() + 1));
    const size_t dash = part.find('-');
    const auto first = parse_processor(part.substr(0, dash));
    const auto last =
        dash == std::string_view::npos ? first : parse_processor(part.substr(dash + 1));
    if (!first || !last || *last < *first) return std::nullopt;
    for (int processor = *first; processor <= *last; ++processor) processors.push_back(processor);
  }
  std::ranges::sort(processors);
  processors.erase(std::unique(processors.begin(), processors.end()), processors.end());
  return processors;
}

std::string processor_list_text(const ProcessorList& processors) {
  if (processors.empty()) return "none";
  std::string text;
  for (size_t i = 0; i < processors.size();) {
    size_t last = i;
    while (last + 1 < processors.size() && processors[last + 1] == processors[last] + 1) ++last;
    if (!text.empty()) text += ',';
    text += std::to_string(processors[i]);
    if (last > i) text += '-' + std::to_string(processors[last]);
    i = last + 1;
  }
  return text;
}

std::vector<Core> read_cores(const ProcessorList& allowed, const fs::path& sys) {
  const std::map<int, int> node_of = read_nodes(sys);
  std::vector<Core> cores;
  std::vector<bool> taken(allowed.size());
  for (size_t i = 0; i < allowed.size(); ++i) {
    if (taken[i]) continue;
    const fs::path topology =
        sys / "devices/system/cpu" / ("cpu" + std::to_string(allowed[i])) / "topology";
    const auto siblings = parse_processor_list(first_line(topology / "thread_siblings_list"));
    const auto node = node_of.find(allowed[i]);
    Core core{node == node_of.end() ? 0 : node->second, {allowed[i]}};
    for (size_t j = i + 1; siblings && j < allowed.size(); ++j) {
      if (taken[j] || !std::ranges::binary_search(*siblings, allowed[j])) continue;
      taken[j] = true;
      core.processors.push_back(allowed[j]);
    }
    cores.push_back(std::move(core));
  }
  std::ranges::stable_sort(cores, {}, &Core::node);
  return cores;
}

std::optional<double> read_processor_quota(const fs::path& proc, const fs::path& sys) {
  std::optional<double> smallest;
  std::ifstream memberships(proc / "self/cgroup");
  for (std::string line; std::getline(memberships, line);) {
    const auto membership = parse_membership(line);
    if (!membership) continue;
    const bool unified = membership->controllers.empty();
    if (!unified && !controls_processors(membership->controllers)) continue;
    const fs::path root = unified ? sys / "fs/cgroup" : sys / "fs/cgroup" / membership->controllers;
    // In a container the path may be the host's, of which only the root is to be seen.
    fs::path group = fs::path(membership->path).relative_path();
    for (;; group = group.parent_path()) {
      if (const auto quota = group_quota(group.empty() ? root : root / group, unified)) {
        smallest = smallest ? std::min(*smallest, *quota) : *quota;
      }
      if (group.empty()) break;
    }
  }
  return smallest;
}

ProcessorList allowed_processors() {
  for (int most = 1024; most <= kMostProcessors; most *= 2) {
    const KernelSet set(most);
    if (sched_getaffinity(0, set.bytes(), set.get()) != 0) continue;  // more than that
    ProcessorList processors;
    for (int processor = 0; processor < most; ++processor) {
      if (CPU_ISSET_S(processor, set.bytes(), set.get())) processors.push_back(processor);
    }
    return processors;
  }
  ProcessorList all(std::max(1U, std::thread::hardware_concurrency()));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int>(i);
  return all;
}

bool restrict_to(const ProcessorList& processors) {
  if (processors.empty()) return false;
  const KernelSet set(processors.back() + 1);
  for (const int processor : processors) CPU_SET_S(processor, set.bytes(), set.get());
  return sched_setaffinity(0, set.bytes(), set.get()) == 0;
}

}  // namespace flashshard::cpu
