// The processors that this process may use: how they share cores and memory nodes, and how much of
// their time its control group has.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flashshard::cpu {

/// Logical processors by the kernel's numbers, ascending.
using ProcessorList = std::vector<int>;

/// "0-3,8" as in sysfs and taskset; nothing for text of another form.
std::optional<ProcessorList> parse_processor_list(std::string_view text);
/// "0-3,8"; "none" for an empty list.
std::string processor_list_text(const ProcessorList& processors);

/// Hardware threads of one core.
struct Core {
  int node = 0;  // of memory
  ProcessorList processors;

  bool operator==(const Core&) const = default;
};

/// The cores that have at least one of `allowed`, with these processors alone, in order of memory
/// node, then of their first processor. What sysfs does not tell is taken for one node, and for
/// cores of one thread each. `sys` is where it is mounted.
std::vector<Core> read_cores(const ProcessorList& allowed,
                             const std::filesystem::path& sys = "/sys");

/// The processors' worth of time that the control group and those above it leave this process, the
/// smallest of them: cpu.max of cgroup v2, cpu.cfs_quota_us of v1. Nothing where there is no limit
/// or none can be read.
std::optional<double> read_processor_quota(const std::filesystem::path& proc = "/proc",
                                           const std::filesystem::path& sys = "/sys");

/// What the calling thread may run on; as many processors as there are where it cannot be told.
ProcessorList allowed_processors();
/// The calling thread, and threads that it starts from now on, run on these alone. False when the
/// kernel refuses.
bool restrict_to(const ProcessorList& processors);

}  // namespace flashshard::cpu
